r"""The value of an answer at one point: enough to tell most wrong answers from the gold without a parser generator or sympy.

Reads a strict part of LaTeX in which nothing is ambiguous: numbers, single letters, `\pi`, `+ - * / ^`, `\cdot`, `\times`,
`\frac`, `\sqrt`, parentheses and products by juxtaposition; and tuples, intervals, matrices, "y =" or "y \in" of these. Every
letter has a fixed value, i that of the imaginary unit and e that of Euler's number. Different values prove that two answers
differ; equal ones prove nothing here.
"""

import cmath
import math
import re

LONGEST = 200  # characters
APART = 1e-6  # relative: more than floating point loses, and as much as the comparison forgives
LARGEST = 1e100

TOKENS = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\(?:[dt]?frac|sqrt|cdot|times|pi|infty)(?![A-Za-z]))|(?P<letter>[A-Za-z])"
    r"|(?P<sign>[-+*/^(){}\[\],]))"
)
MATRIX = re.compile(r"\\begin\{([bp])matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
DEFINITION = re.compile(r"([A-Za-z](?:\([A-Za-z]\))?) ?(=|\\in(?![a-z])) ?(.+)")
INFINITY = 1e50
SPACING = re.compile(r"\\(?:left|right)(?![a-z])|(?<!\\)\\[,;: ]|~")


class Unread(Exception):
    """The text is not of the part of LaTeX that is read here."""


def values_differ(left: str, right: str) -> bool:
    """Whether two normalised answers of one shape have different values; False where that is not sure."""
    try:
        (shape, values), (other_shape, other_values) = read(left), read(right)
    except (Unread, ArithmeticError, ValueError, RecursionError):
        return False
    if shape != other_shape:
        return False
    return any(abs(a - b) > APART * (1 + abs(a) + abs(b)) for a, b in zip(values, other_values, strict=True))


def read(text: str) -> tuple[str, list[complex]]:
    """The shape of an answer and its values: "(,]" and two values of an interval, "" and one of an expression. Raises Unread."""
    if len(text) > LONGEST:
        raise Unread
    text = SPACING.sub(" ", text).strip()
    if matrix := MATRIX.fullmatch(text):
        rows = [[value(cell) for cell in row.split("&")] for row in matrix[2].split("\\\\")]
        return "matrix" + ",".join(str(len(row)) for row in rows), [found for row in rows for found in row]
    if definition := DEFINITION.fullmatch(text):
        shape, found = read(definition[3])
        return definition[1] + definition[2] + shape, found
    tokens = tokenise(text)
    if tokens[:1] not in (["("], ["["]) or "," not in tokens:
        return "", [value(text)]
    reader, found = Reader(tokens[1:]), []
    while not found or reader.next == ",":
        if found:
            reader.take()
        found.append(finite(reader.sum()))
    closing = reader.take()
    if closing not in (")", "]") or reader.next:
        raise Unread
    return tokens[0] + "," * (len(found) - 1) + closing, found


def value(text: str) -> complex:
    reader = Reader(tokenise(text))
    found = finite(reader.sum())
    if reader.next:
        raise Unread
    return found


def finite(number: complex) -> complex:
    if not cmath.isfinite(number) or abs(number) > LARGEST:
        raise Unread
    return number


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

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]

    @property
    def next(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, expected: str = "") -> str:
        if not self.tokens or (expected and self.next != expected):
            raise Unread
        return self.tokens.pop()

    def sum(self) -> complex:
        value = 0j
        sign = self.take() if self.next in ("+", "-") else "+"
        while True:
            term = self.product()
            value += term if sign == "+" else -term
            if self.next not in ("+", "-"):
                return value
            sign = self.take()

    def product(self) -> complex:
        value, divided = self.power(), False
        while True:
            if self.next in ("*", "\\cdot", "\\times"):
                self.take()
                value *= self.power()
            elif self.next == "/":
                self.take()
                value, divided = value / self.power(), True
            elif self.next and self.next not in "+-^)}],":
                # 1/2x is read by some as half an x and by others as one over 2x; 2 3 is no product; 1\frac{1}{2} is a sum.
                if divided or self.next[0].isdigit() or self.next == "[" or "frac" in self.next:
                    raise Unread
                value *= self.power()
            else:
                return value

    def power(self) -> complex:
        base = self.atom()
        if self.next != "^":
            return base
        self.take()
        exponent = self.group() if self.next == "{" else self.digit()
        if self.next == "^" or abs(exponent) > 1000:
            raise Unread
        return base**exponent

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
            return self.group() / self.group()
        if token == "\\sqrt":
            return self.root()
        if token == "\\pi":
            return complex(math.pi)
        if token == "\\infty":
            return complex(INFINITY)
        if len(token) == 1 and token.isalpha():
            return letter(token)
        raise Unread

    def root(self) -> complex:
        degree = 2 + 0j
        if self.next == "[":
            self.take()
            degree = complex(int(self.digits()))
            self.take("]")
        radicand = self.group()
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

    def digit(self) -> complex:
        """LaTeX takes one digit or letter after a bare caret: x^23 is x squared times three, which nobody means."""
        token = self.take()
        if len(token) != 1 or not token.isalnum():
            raise Unread
        return complex(float(token)) if token.isdigit() else letter(token)


def letter(name: str) -> complex:
    """Capitals are the same letters to math-verify, but I and E are nobody's units. Positive, so that roots hold everywhere."""
    if name in "EI":
        raise Unread
    if name == "i":
        return 1j
    if name == "e":
        return complex(math.e)
    return complex(1 + math.sqrt(ord(name.lower()) - 90) / 3)
