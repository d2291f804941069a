r"""The value of an expression at one point: enough to tell most wrong answers from the gold without a parser generator or sympy.

Reads a strict part of LaTeX in which nothing is ambiguous: numbers, letters and Greek letters with their subscripts, `\pi`,
`+ - * / ^ !`, `\cdot`, `\times`, `\frac`, `\sqrt`, `\binom`, floor and ceiling, logarithms that say their base, elementary
functions of an argument that is marked as such, parentheses and products by juxtaposition. Every symbol has a fixed value, i
that of the imaginary unit and e that of Euler's number. Different values prove that two expressions differ; equal ones prove
nothing here.
"""

import cmath
import math
import re
import zlib
from collections.abc import Callable, Mapping

from mpmath import gamma, mpc

LONGEST = 200  # characters
UNDEFINED = complex(math.nan)  # one over zero
APART = 1e-6  # relative: more than floating point loses, and as much as the comparison forgives
LARGEST_EXPONENT = 100_000
DIGITS = "0123456789."
ENDS = ("+", "-", "^", ")", "}", "]", "\\rfloor", "\\rceil")  # of a product
INFINITY = 1e50

FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda argument: 1 / cmath.tan(argument),
    "sec": lambda argument: 1 / cmath.cos(argument),
    "csc": lambda argument: 1 / cmath.sin(argument),
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "ln": cmath.log,
    "exp": cmath.exp,
}
ROUNDED = {"\\lfloor": (math.floor, "\\rfloor"), "\\lceil": (math.ceil, "\\rceil")}
GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|phi|chi|psi|omega"
    "|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega"
)
SUBSCRIPT = r"(?:\s*_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}|\{\\(?:text|mathrm|rm)\s*\{\s*[A-Za-z0-9]+\s*\}\}))?"
LETTER = rf"(?:[A-Za-z]|\\mathcal\{{[A-Z]\}}|\\(?:hbar|(?:var)?(?:{GREEK}))(?![A-Za-z]))"
PRIME = r"(?:'+|\s*\^\s*\{\s*(?:\\prime\s*)+\}|\s*\^\s*\\prime(?![a-z]))?"
SYMBOL = rf"(?:{LETTER}|\\d?dot\s*(?:{LETTER}|\{{\s*{LETTER}\s*\}})){SUBSCRIPT}{PRIME}"
NAMES = re.compile(  # subscripts, derivatives, products of capitals: no words
    r"_\{\w+\}|_\{\\\w+\s*\{[^{}]*\}\}|\\d?dot(?![a-z])|\\prime(?![a-z])|(?<![\\A-Za-z])(?!SIN|COS|TAN|LOG|EXP|MAX|MIN|MOD)"
    r"[A-Z]{3,5}(?![A-Za-z])"
)
SYMBOL_ALONE = re.compile(SYMBOL)
TOKENS = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)"
    rf"|(?P<command>\\(?:[cdt]?frac|[dt]?binom|sqrt|cdot|times|pi|infty|[lr](?:floor|ceil)|{'|'.join(FUNCTIONS)})(?![A-Za-z]))"
    r"|(?P<logarithm>\\log\s*_\s*(?:\d|\{\d+\}))"
    rf"|(?P<symbol>{SYMBOL})|(?P<sign>[-+*/^(){{}}\[\]!]))"
)
# math-verify makes commands of some words that lack their backslash, and takes others for units.
WORDS = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|[Pp]i|PI|ln|mu|nu|xi|[ckm]m|[km]g|hr|ft|lb|oz|ml|in|or|if)(?![A-Za-z])")


class Unread(Exception):
    """The text is not of the part of LaTeX that is read here."""


def value(text: str, at: Mapping[str, complex] = {}) -> complex:
    """With these values of some symbols, by name. Raises Unread, ArithmeticError or ValueError for what has no value here.

    ZeroDivisionError only for what has none anywhere.
    """
    if len(text) > LONGEST or WORDS.search(NAMES.sub("", text)):
        raise Unread
    reader = Reader(tokenise(text), at)
    try:
        found = reader.sum()
    except ZeroDivisionError:
        if reader.vanished:
            raise Unread from None
        raise
    if reader.next or not (isinstance(found, mpc) or cmath.isfinite(found)):
        raise Unread
    return found


def symbols(text: str) -> set[str]:
    """Names of the symbols in it that stand for any number."""
    return {symbol_name(token) for token in tokenise(text) if SYMBOL_ALONE.fullmatch(token)} - {"i", "e", "pi"}


def symbol_name(token: str) -> str:
    """Capitals are the same symbols to math-verify."""
    return re.sub(r"\\(?:var|text|mathrm|rm(?![a-z]))?|[\s{}^]", "", token).replace("prime", "'").lower()


def apart(left: complex, right: complex) -> bool:
    if cmath.isnan(left) or cmath.isnan(right):
        known = left if cmath.isnan(right) else right
        return not cmath.isnan(known) and abs(known) < INFINITY / 2  # some write infinity for one over zero
    return abs(left - right) > APART * (1 + abs(left) + abs(right))


def tokenise(text: str) -> list[str]:
    text, position, tokens = text.strip(), 0, []
    while position < len(text):
        match = TOKENS.match(text, position)
        if match is None:
            raise Unread
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


class Reader:
    """Recursive descent: sum of products of powers of atoms."""

    def __init__(self, tokens: list[str], at: Mapping[str, complex]) -> None:
        self.tokens, self.at, self.taken = tokens[::-1], at, ""
        self.vanished = False  # whether anything came out as zero that may be too small, or the rounding of a difference

    def kept(self, found: complex, *parts: complex) -> complex:
        self.vanished |= found == 0 and all(parts)
        return found

    @property
    def next(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, expected: str = "") -> str:
        if not self.tokens or (expected and self.next != expected):
            raise Unread
        self.taken = self.tokens.pop()
        return self.taken

    def sum(self) -> complex:
        value = 0j
        sign = self.take() if self.next in ("+", "-") else "+"
        while True:
            term = self.product()
            value = self.kept(value + (term if sign == "+" else -term), value, term)
            if self.next not in ("+", "-"):
                return value
            sign = self.take()

    def product(self) -> complex:
        value, divided = self.power(), False
        while True:
            if self.next in ("*", "\\cdot", "\\times"):
                self.take()
                factor = self.power()
                value = self.kept(value * factor, value, factor)
            elif self.next == "/":
                self.take()
                value, divided = self.kept(value / self.power(), value), True
            elif self.next and self.next not in ENDS:
                # 1/2x is read by some as half an x and by others as one over 2x; 2 3 is no product; 1\frac{1}{2} is a sum.
                number = self.next[0].isdigit() and self.taken != ")"
                if divided or number or self.next == "[" or ("frac" in self.next and self.taken[0] in DIGITS):
                    raise Unread
                factor = self.power()
                value = self.kept(value * factor, value, factor)
            else:
                return value

    def power(self) -> complex:
        base = self.atom()
        if self.next == "!":
            self.take()
            base = factorial(base)
        if self.next != "^":
            return base
        self.take()
        exponent = self.argument()
        if self.next in ("^", "!") or abs(exponent) > LARGEST_EXPONENT:
            raise Unread
        return self.kept(power(base, exponent), base)

    def atom(self) -> complex:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return complex(float(token))
        if token == "(":
            value = self.sum()
            self.take(")")
            return value
        if token == "{":
            self.tokens.append(token)
            return self.group()
        if token.endswith("frac"):
            numerator = self.argument()
            return self.kept(numerator / self.argument(), numerator)
        if token.endswith("binom"):
            upper, lower = self.argument(), self.argument()
            return factorial(upper) / (factorial(lower) * factorial(upper - lower))
        if token == "\\sqrt":
            return self.root()
        if token == "\\pi":
            return complex(math.pi)
        if token == "\\infty":
            return complex(INFINITY)
        if token in ROUNDED:
            return self.rounded(*ROUNDED[token])
        if token.startswith("\\log"):
            base = math.log(int(re.sub(r"\D", "", token)))
            return self.function(lambda argument: cmath.log(argument) / base)
        if token[1:] in FUNCTIONS:
            return self.function(FUNCTIONS[token[1:]])
        return self.symbol(token)

    def rounded(self, function: Callable[[float], int], closing: str) -> complex:
        argument = self.sum()
        self.take(closing)
        if argument.imag or abs(argument.real - round(argument.real)) < APART * (1 + abs(argument)):  # who knows on which side?
            raise Unread
        return complex(function(argument.real))

    def function(self, function: Callable[[complex], complex]) -> complex:
        """Of an argument in parentheses or braces, or of one atom with which the term ends: who knows what sin x y is?"""
        exponent = 1 + 0j
        if self.next == "^":
            self.take()
            exponent = self.argument()
            if exponent.imag or exponent.real <= 0:  # the power -1 is an inverse function
                raise Unread
        if self.next in ("(", "{"):
            argument = self.atom()
            if self.next in ("^", "!", "("):
                raise Unread
        else:
            argument = self.atom()
            if self.next and (self.next not in ENDS or self.next == "^"):
                raise Unread
        return self.kept(function(argument), argument) ** exponent

    def root(self) -> complex:
        degree = 2 + 0j
        if self.next == "[":
            self.take()
            degree = complex(int(self.digits()))
            self.take("]")
        radicand = self.argument()
        # Even of a negative number the principal root; which cube root of a negative number is meant, nobody says.
        if degree != 2 and (radicand.imag or radicand.real < 0):
            raise Unread
        return radicand ** (1 / degree)

    def group(self) -> complex:
        self.take("{")
        value = self.sum()
        self.take("}")
        return value

    def digits(self) -> str:
        token = self.take()
        if not token.isdigit():
            raise Unread
        return token

    def argument(self) -> complex:
        """A group, or the digit or symbol that LaTeX takes without braces: x^23 is x squared times three, which nobody means."""
        if self.next == "{":
            return self.group()
        token = self.take()
        if len(token) == 1 and token.isdigit():
            return complex(float(token))
        if token == "\\pi":
            return complex(math.pi)
        return self.symbol(token)

    def symbol(self, token: str) -> complex:
        """I and E are nobody's units. Positive, so that roots hold everywhere."""
        name = symbol_name(token)
        if not SYMBOL_ALONE.fullmatch(token) or token[0] in "EI" or (token[0] in "ei" and len(name) > 1):
            raise Unread
        if token == "i":
            return 1j
        if token == "e":
            return complex(math.e)
        return self.at.get(name, complex(1 + 3 * zlib.crc32(name.encode()) / 2**32))


def power(base: complex, exponent: complex) -> complex:
    """A number of mpmath where that is too large or small for a float."""
    try:
        if found := base**exponent:
            return found
    except OverflowError:
        pass
    return mpc(base) ** mpc(exponent) if base else base**exponent


def factorial(number: complex) -> complex:
    if number.imag or number.real > LARGEST_EXPONENT:
        raise Unread
    return complex(math.gamma(number.real + 1)) if number.real < 100 else gamma(mpc(number) + 1)
