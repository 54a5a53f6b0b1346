"""What a browser never sends, for the tests of whoever reads forms."""

from __future__ import annotations

# Bodies that are no form: name → Content-Type and bytes. Each holds a word that must not get into a log.
BROKEN_FORMS = {
    "no boundary": ("multipart/form-data", b"needle"),
    "another boundary": ("multipart/form-data; boundary=a", b"--needle\r\n\r\nx\r\n--needle--\r\n"),
    "cut off": ("multipart/form-data; boundary=a", b"--a\r\nContent-Disposition: form-data; name=needle\r\n"),
    "no name": ("multipart/form-data; boundary=a", b"--a\r\nContent-Disposition: form-data\r\n\r\nneedle\r\n--a--\r\n"),
    "unknown encoding": (
        "multipart/form-data; boundary=a",
        b'--a\r\nContent-Disposition: form-data; name="key"\r\nContent-Transfer-Encoding: needle\r\n\r\nx\r\n--a--\r\n',
    ),
    "bad header": ("multipart/form-data; boundary=a", b"--a\r\nneedle needle\r\n\r\nx\r\n--a--\r\n"),
    "unknown charset": ("application/x-www-form-urlencoded; charset=bogus", b"key=needle"),
    "not in its charset": ("application/x-www-form-urlencoded", b"key=needle\xff"),
}
