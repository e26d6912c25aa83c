"""The TLS context of --certfile and --keyfile; a key's passphrase is asked for at the terminal."""

from __future__ import annotations

import getpass
import ssl
import sys
import warnings


def tls_context(certfile: str | None, keyfile: str | None) -> ssl.SSLContext | None:
    """Return the context of these PEM files, None without a certfile.

    Raises OSError or ValueError naming the file.
    """
    if not certfile:
        if keyfile:
            raise ValueError("--keyfile needs --certfile too")
        return None
    for name in filter(None, (certfile, keyfile)):
        try:
            open(name).close()
        except OSError as exc:
            raise OSError(f"cannot read {name}: {exc.strerror}") from exc
    context: ssl.SSLContext = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    was_asked = False

    def passphrase() -> str:
        nonlocal was_asked
        was_asked = True
        return _passphrase(keyfile or certfile)

    try:
        context.load_cert_chain(certfile, keyfile, passphrase)
    except ssl.SSLError as exc:
        if was_asked:
            why = f"the passphrase does not open {keyfile or certfile}"
        elif keyfile:
            why = f"{keyfile} is not the private key of {certfile}, or one of them is no PEM file"
        else:
            why = f"{certfile} is no PEM file with a certificate and its private key; give the key with --keyfile"
        raise ValueError(f"{why} ({exc.reason or exc})") from exc
    return context


def _passphrase(name: str) -> str:
    """Return the passphrase of a key file, from the terminal; without one from stdin.

    Raises ValueError naming the file, where stdin has none either, or Ctrl-D ended the terminal's line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(f"Passphrase of {name}: ")
    except EOFError:
        raise ValueError(f"no passphrase was given for {name}") from None
    except getpass.GetPassWarning:
        given = sys.stdin.readline().rstrip("\n") if sys.stdin is not None else ""
    if not given:
        raise ValueError(
            f"{name} has a passphrase, and there is no terminal to ask for it: pass it to stdin, "
            f"or write the key without one, by openssl pkey -in {name} -out plain.pem"
        )
    return given
