"""What the contract's words mean, for schemathesis: it knows how to make most of them, but not these."""

import string
import unicodedata

import schemathesis
from hypothesis import strategies

ATOM = string.ascii_letters + string.digits + "!#$%&'*+/=?^_`{|}~-"
LETTERS = string.ascii_letters + string.digits


def text(alphabet, longest):
    return strategies.text(alphabet, min_size=1, max_size=longest)


def label():
    # A label begins and ends with a letter or a digit.
    return strategies.builds(lambda a, b, c: a + b + c, text(LETTERS, 1), strategies.text(LETTERS + "-", max_size=20), text(LETTERS, 1))


def address():
    local = strategies.one_of(
        strategies.lists(text(ATOM, 20), min_size=1, max_size=3).map(".".join),
        text(string.ascii_letters + " @.,;<>()", 20).map(lambda quoted: f'"{quoted}"'),
    )
    domain = strategies.lists(label(), min_size=2, max_size=4).map(".".join)
    return strategies.builds(lambda local, domain: f"{local}@{domain}", local, domain)


# Its own addresses have domains of one label as well, which the service refuses.
schemathesis.openapi.format("email", address())


def clear(name):
    """Invisible characters that the pattern does not know, and joiners behind letters of scripts that need none, are refused."""
    beyond = any(ord(c) > 0xFFFF and unicodedata.category(c) == "Cf" for c in name)
    return not beyond and not any(joiner in name for joiner in "\u200c\u200d")


@schemathesis.hook
def filter_body(context, body):
    name = body.get("name") if isinstance(body, dict) else None
    return not isinstance(name, str) or clear(name)
