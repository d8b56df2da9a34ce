"""Whatever is wrong with a file is one InputError, at once, in little memory."""

import gzip
import io
import json
import os
import socket
import zipfile

import numpy as np
import pytest

import diffode.reading as limits
from diffode.errors import InputError, one_line, shown
from diffode.reading import open_regular, parse_json, plausible, read_gzip, read_json, read_npz, reading

BAD_JSON = {
    "": "not JSON",
    "[1, 2": "not JSON",
    '{"a": 1, "a": 2}': "has the name 'a' twice",
    "[NaN]": "NaN",
    "-Infinity": "-Infinity",
    "1e999": "1e999",
    "1" * 5000: "5000 digits",
    "[" * 100_000: "too deeply",
    '{"a":' * 100_000: "too deeply",
    '"\\ud800"': "UTF-8",
    '["\\uDFFF"]': "UTF-8",
    b"\xff": "UTF-8",
    b"\xef\xbb\xbf[]": "not JSON",
}


@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(InputError, match=BAD_JSON[text]):
        parse_json(text)


def test_json_is_what_python_reads():
    value = {"a": [1, -2.5, 1e300, True, None, "xé𝄞"], "b": {"c": 2**64 - 1}}
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_json("[NaN, -Infinity]", infinite=True)[1] == -np.inf


def test_a_file_that_is_no_regular_one_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "socket", "/dev/zero", "none", "a\0b", "x" * 300, "\udcff"):
            with pytest.raises(InputError, match="expected an example") as error:
                read_json(path, "plan", "an example")
            assert len(str(error.value)) < 400
            assert str(error.value).isprintable()


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path):
    (tmp_path / "a.json").write_text("[" + "1," * 1000 + "1]")
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        read_json(tmp_path / "a.json", "plan", "an example", most=1000)


def npy(array, **header):
    """An .npy; header: what its header says in place of the truth."""
    stream = io.BytesIO()
    said = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape} | header
    np.lib.format.write_array_header_1_0(stream, said)
    return stream.getvalue() + array.tobytes()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize(
    "member",
    [
        npy(np.zeros(3), shape=(2**40,)),
        npy(np.zeros(3), shape=(-1,)),
        npy(np.zeros(3), shape=(True,)),
        npy(np.zeros(3), shape=(10**400, 0)),
        npy(np.zeros(3), descr="|O"),
        npy(np.zeros(3), descr="<f9"),
        npy(np.zeros(3))[:-1],
        npy(np.zeros(3))[:20],
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x07\x00",
        b"",
    ],
    ids=range(12),
)
def test_an_array_is_as_large_as_its_member_of_the_archive(tmp_path, member):
    file = archive(tmp_path / "a.npz", a=member)
    with pytest.raises(InputError, match=r"a\.npz is not an example"), reading(file, "example", "another"):
        read_npz(file)


def test_what_unpacks_to_implausibly_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SMALL", 2**20)
    size = plausible(0) + 1
    archive(tmp_path / "a.npz", a=npy(np.zeros(0, np.uint8), shape=(size,)) + bytes(size))
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.write(bytes(size))
    for read, name in ((read_npz, "a.npz"), (read_gzip, "a.gz")):
        with pytest.raises(InputError, match="would unpack to 1,048,"):
            read(tmp_path / name)


def test_arrays_are_what_numpy_writes(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.eye(3)), "c": np.array(["x", "é"]), "d": np.array(3)}
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", **arrays)
        read = read_npz(tmp_path / "a.npz")
        assert read.keys() == arrays.keys()
        assert all(np.array_equal(read[name], array) and read[name].dtype == array.dtype for name, array in arrays.items())
    assert read_npz(tmp_path / "a.npz", ["a", "z"]).keys() == {"a"}


def test_an_error_that_names_its_file_is_not_wrapped_again(tmp_path):
    with pytest.raises(InputError) as error, reading("f", "plan", "more"), reading("f", "plan", "more"):
        raise KeyError("x")
    assert str(error.value) == "f is not a plan (KeyError: 'x'): expected more"


def test_a_regular_file_is_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with open_regular(tmp_path / "b") as file:
        assert file.read() == b"x"


@pytest.mark.parametrize(
    "value", ["\x1b[31m\n\u202e" * 999, 10**9999, [[[[[[[[[1]]]]]]]]], {"a" * 999: 1}, np.zeros((99, 99))], ids=range(5)
)
def test_what_a_message_shows_is_short_and_printable(value):
    assert len(shown(value)) <= 80
    assert shown(value).isprintable()
    assert len(one_line("x" * 999)) == 80
