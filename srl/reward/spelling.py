r"""One spelling for an answer, and what can be read off that spelling without algebra: numbers, fractions, lists."""

import re
from fractions import Fraction

LONGEST_NUMBER = 2000  # characters; Python itself reads no longer integers than 4,300 digits

SIGN = r"[+-]?"
SEPARATOR = r"(?:,|\{,\}|\\,|\\ |~| )"
GROUPED = re.compile(rf"{SIGN}\d{{1,3}}(?:{SEPARATOR}\d{{3}})+(?:\.\d+)?")
GROUPED_ARGUMENT = re.compile(r"(?<!\\)\{\d{1,3}(?:,\d{3})+\}")  # the 5,525 of \frac{12}{5,525}, not a set
DECIMAL_COMMA = re.compile(rf"({SIGN}\d+),(\d+)")
E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d+)(?![\w.])")
EXPONENT = rf"\s*10\s*\^\s*(?P<exponent>\{{\s*{SIGN}\d{{1,4}}\s*\}}|{SIGN}\d{{1,4}})"
TIMES = r"\s*(?:\\times|\\cdot|\\ast|\*|x)"
SCIENTIFIC = re.compile(rf"(?P<mantissa>{SIGN}(?:\d+\.?\d*|\.\d+))(?:{TIMES}{EXPONENT})?")
POWER_OF_TEN = re.compile(rf"(?P<sign>{SIGN}){EXPONENT}")
INTEGER = re.compile(rf"{SIGN}\d+")
FRACTION = re.compile(rf"({SIGN})(?:\\[dt]?frac\s*\{{\s*({SIGN}\d+)\s*\}}\s*\{{\s*(\d+)\s*\}}|(\d+)\s*/\s*(\d+))")

WORD = r"(?:square |cubic )?[A-Za-z]{3,}"
COUNTED = re.compile(rf"((?:\\\$)?{SIGN}\d[\d.,]*)\s+({WORD}(?: [A-Za-z]{{3,}}){{0,2}})\.?")  # 3 hours, 12 square units
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SCALED = re.compile(  # 5 million, \$1.5 \text{ billion dollars}
    rf"((?:\\\$)?{SIGN}\d[\d,]*(?:\.\d+)?)(?:[\s~]|\\[ ,;])*(?:\\(?:text|textrm|mathrm|mbox)\s*\{{[~\s]*)?({'|'.join(SCALES)})"
    rf"(\s+[A-Za-z]{{3,}})?\s*\}}?"
)
IN_UNITS = re.compile(  # 5.4 \text{ cents}, 15\mbox{ cm}^2
    rf"({SIGN}\d[\d.,]*)\s*\\(?:text|textrm|mathrm|mbox)\s*\{{[~\s]*([A-Za-z][A-Za-z. ]*)\}}(?:\s*\^\s*\{{?[23]\}}?)?"
)
PLUS_MINUS = re.compile(r"\\pm(?![a-z])")
SHORT_FRACTION = re.compile(  # \frac65, \frac9{19}, and \frac\pi2, of which math-verify makes nonsense
    r"\\([dt]?frac)\s*(\d|\\pi(?![a-z]))\s*(?:(\d|\\pi(?![a-z]))|(?=\{))"
)
WHOLE_AND_PART = re.compile(r"(?<![\w.,/^}])(?<!\d )(\d+) ([1-9]\d*)/(\d+)(?![\d./])")  # 2 3/4: math-verify makes 5/4 of it
MIXED = re.compile(rf"^({SIGN})(\d+)\s*\\[dt]?frac\s*\{{\s*([1-9]\d*)\s*\}}\s*\{{\s*(\d+)\s*\}}(?=\s*(?:\\?%)?$)")
REPEATING = re.compile(rf"({SIGN})(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{{\s*(\d+)\s*\}}|(\d))")  # 0.1\overline{6}
PLAIN_NAME = re.compile(  # pi and sin(x) as a calculator has them, of which math-verify makes products of letters
    r"(?<![\\A-Za-z{])(pi(?![A-Za-z])|(?:sin|cos|tan|cot|sec|csc|ln|log|exp)(?=\())\s*"
)
SHORT_ROOT = re.compile(r"\\sqrt\s*(\d)(?![\d.])")  # \sqrt2
NOT_A_UNIT = re.compile(  # words that change the number before them
    rf"\b(?:{'|'.join(SCALES)}|dozen|half|halves|thirds|fifths|tenths|squared|cubed|factorial|root|base|not|percent|per|mod"
    r"|and|or|plus|minus|times|over|out|more|less|sqrt"
    r"|than|choose|sin|cos|tan|log|exp|pi|from|with)\b",
    re.IGNORECASE,
)
IN_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
CLOCK = re.compile(r"0?(\d{1,2}:\d\d(?::\d\d)?)\s*([ap])\.?\s*m\.?", re.IGNORECASE)  # 4:30 p.m.
MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
CHOICES = re.compile(r"[A-H](?:\)?(?:, ?and |, ?| and )\(?[A-H])+")  # A, C and D
DATE = re.compile(rf"({MONTH}) (\d{{1,2}})(?:st|nd|rd|th)?", re.IGNORECASE)  # June 20, June 20th
DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))$")
SUBSCRIPT = re.compile(r"_\{\s*\\(max|min|sup|inf|odot|oplus|star)\s*\}")
EULER_SUBSCRIPT = re.compile(r"(?<![A-Za-z\\])([Ee])_(?=[\d{])")  # E_1 is an energy; math-verify sees Euler's number
BARE_POWER = re.compile(r"\^\s*(\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\})")  # math-verify reads 7^\frac{1}{2} as 1/2
ELLIPSIS = re.compile(r"\\[lcd]?dots(?:[cbmio](?![a-z]))?|\.\.\.|…")
DOTS = re.compile(rf"(?:{ELLIPSIS.pattern})\s*")
LATEX_SPACE = r"(?<!\\)(?:\\[,;: ]|~)"
LOOSE_SPACE = re.compile(rf"(?<!\d){LATEX_SPACE}|{LATEX_SPACE}(?!\d)")  # 80\,\%, which math-verify cannot read; not 12\,345
BARE_WORDS = re.compile(r"(?=.*[A-Za-z]{4}|(?:yes|no|odd|all)$)[A-Za-z]+(?:[ -][A-Za-z]+)*", re.IGNORECASE)
MATH_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le "}
    | {
        "∅": r"\emptyset ",
        "≥": r"\ge ",
        "≈": r"\approx ",
        "≠": r"\ne ",
        "∪": r"\cup ",
        "∈": r"\in ",
        "°": r"^{\circ}",
        "√": r"\sqrt ",
        "±": r"\pm ",
        "\u200b": "",
    }
)
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")


def normalise(answer: str) -> str:
    r"""One spelling of an answer for comparison as a string; applying it twice changes nothing.

    Drops `$` (not `\$`), `\!`, outer `\(` or `\[`, outer spaces, one final full stop, thousands separators and degree signs of
    plain numbers, and the words counted by a number ("3 hours"). Writes unicode signs as LaTeX, `4.5e33`, in which math-verify
    would see Euler's number, as `4.5 \times 10^{33}`, `1./3`, which it cannot read, as `1/3`, and `\text{025}` as `025`.
    """
    text = RAISED_RUN.sub(lambda match: "^{" + match.group().translate(RAISED) + "}", answer).translate(MATH_SIGNS)
    text = re.sub(r"\\!\s*|\\displaystyle(?![a-z])|\\[bB]igg?[lrm]?(?![A-Za-z])", "", text)
    text = LOOSE_SPACE.sub(" ", text)
    text = without_wrapping(" ".join(re.sub(r"(?<!\\)\$", "", text).split()))
    if (wrapped := IN_TEXT.fullmatch(text)) and re.search(r"\d", wrapped[1]):
        text = without_wrapping(wrapped[1].strip())
    if len(text) <= LONGEST_NUMBER:
        text = plain_spelling(text)
    text = SHORT_FRACTION.sub(lambda match: rf"\{match[1]}{{{match[2]}}}" + (f"{{{match[3]}}}" if match[3] else ""), text)
    if len(text) <= LONGEST_NUMBER:
        text = MIXED.sub(improper, WHOLE_AND_PART.sub(with_fraction, text))
    text = SHORT_ROOT.sub(r"\\sqrt{\1}", PLAIN_NAME.sub(r"\\\1 ", text.replace("**", "^")).rstrip())
    text = GROUPED_ARGUMENT.sub(lambda match: match.group().replace(",", ""), text)
    text = text.replace(r"\langle", "(").replace(r"\rangle", ")")  # \langle 1,2 \rangle is 1.2 to math-verify
    text = re.sub(r"\\varnothing(?![a-z])", r"\\emptyset", text)
    text = EULER_SUBSCRIPT.sub(r"\\mathcal{\1}_", SUBSCRIPT.sub(r"_{\1}", text))
    text = BARE_POWER.sub(r"^{\1}", text.replace("np.arc", r"\arc"))
    text = re.sub(r"(?<=\d)\.(?=/)", "", text)
    return E_NOTATION.sub(r"\1 \\times 10^{\2}", text)


def without_wrapping(text: str) -> str:
    r"""Without a final full stop and without `\( \)` or `\[ \]` around everything."""
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text[2:-2].strip() if re.fullmatch(r"\\\((?:(?!\\\().)*\\\)|\\\[(?:(?!\\\[).)*\\\]", text) else text


def plain_spelling(text: str) -> str:
    """Of a number: without thousands separators, degrees, and the words that it counts. Other text stays as it is."""
    if (scaled := SCALED.fullmatch(text)) and not NOT_A_UNIT.search(scaled[3] or ""):
        return rf"{scaled[1].replace(',', '')} \times 10^{{{SCALES[scaled[2]]}}}"
    counted = COUNTED.fullmatch(text) or IN_UNITS.fullmatch(text)
    if counted and not NOT_A_UNIT.search(counted[2]):
        text = counted[1].rstrip(".,")
    if repeating := REPEATING.fullmatch(text):
        return as_fraction(*repeating.groups(default=""))
    bare = DEGREES.sub("", text)
    if SCIENTIFIC.fullmatch(bare) or GROUPED.fullmatch(bare):
        text = bare
    return re.sub(SEPARATOR, "", text) if GROUPED.fullmatch(text.removeprefix(r"\$").lstrip()) else text


def with_fraction(match: re.Match[str]) -> str:
    r"""2 3/4 with `\frac`, if its part is less than one: 12 345/7 is no mixed number."""
    whole, part, parts = match.groups()
    return rf"{whole}\frac{{{part}}}{{{parts}}}" if int(part) < int(parts) else match.group()


def improper(match: re.Match[str]) -> str:
    r"""A mixed number as one fraction: of 66\frac{2}{3}\% math-verify reads nothing but the part."""
    sign, (whole, part, parts) = match[1], map(int, match.groups()[1:])
    return rf"{sign}\frac{{{whole * parts + part}}}{{{parts}}}" if part < parts else match.group()


def as_fraction(sign: str, whole: str, decimals: str, period: str, digit: str) -> str:
    """0.1666... is (16 - 1) / 90."""
    before, period = whole + decimals, period or digit
    numerator = int(before + period) - int(before or "0")
    return rf"{sign}\frac{{{numerator}}}{{{'9' * len(period)}{'0' * len(decimals)}}}"


def compact(answer: str) -> str:
    r"""A normalised answer without what cannot change its meaning: spaces, `\left`, `\right`, kinds of fractions and dots."""
    text = re.sub(r"\\(?:left|right)(?![a-z])\s*", "", DOTS.sub(r"\\dots ", answer))
    text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text)
    return re.sub(r"(?<![\w]) | (?![\w])", "", text)


def plain_number(answer: str) -> Fraction | None:
    r"""The exact value of a normalised integer, decimal or `a \times 10^{n}` with |n| < 10^4; None for anything else."""
    if len(answer) > LONGEST_NUMBER:
        return None
    answer = answer.removeprefix(r"\$").lstrip()
    if match := SCIENTIFIC.fullmatch(answer):
        exponent = int((match["exponent"] or "0").strip("{} "))
        return Fraction(match["mantissa"]) * Fraction(10) ** exponent
    if match := POWER_OF_TEN.fullmatch(answer):
        return Fraction(match["sign"] + "1") * Fraction(10) ** int(match["exponent"].strip("{} "))
    return None


def plain_fraction(answer: str) -> Fraction | None:
    r"""The value of a normalised integer, `\frac{a}{b}` or `a/b` of integers; None for anything else and for b = 0."""
    if len(answer) > LONGEST_NUMBER:
        return None
    if INTEGER.fullmatch(answer):
        return Fraction(int(answer))
    match = FRACTION.fullmatch(answer)
    if match is None:
        return None
    numerator, denominator = int(match[2] or match[4]), int(match[3] or match[5])
    return Fraction(-numerator if match[1] == "-" else numerator, denominator) if denominator else None


def decimal_comma(answer: str) -> str | None:
    """`3,5` written `3.5`; None for anything else."""
    match = DECIMAL_COMMA.fullmatch(answer)
    return f"{match[1]}.{match[2]}" if match else None


def is_integer(answer: str) -> bool:
    """Whether a normalised answer is written as an integer, which has no rounding to forgive."""
    return INTEGER.fullmatch(answer) is not None


def words(answer: str) -> str | None:
    r"""Lower-case words of an answer that is nothing but `\text{words}`, letters of choices, `\text{(E)}`, a date or a time.

    None for all others; other single letters are variables.
    """
    plain = " ".join(IN_TEXT.sub(r"\1", answer).split())
    if clock := CLOCK.fullmatch(plain):
        return f"{clock[1]} {clock[2].lower()}m"
    if date := DATE.fullmatch(plain):
        return f"{date[1].lower()} {int(date[2])}"
    match = IN_TEXT.fullmatch(answer)
    inner = " ".join((match[1] if match else "").split()).strip(" .()")
    if CHOICES.fullmatch(inner):
        return ", ".join(sorted(re.findall(r"\b[A-H]\b", inner))).lower()
    return inner.lower() if re.fullmatch(r"[A-H]|[A-Za-z][A-Za-z' -]+", inner) else None


def bare_words(answer: str) -> str | None:
    r"""As `words`, of an answer that needs no `\text`; None for what may be a product of letters, or several answers."""
    plain = " ".join(IN_TEXT.sub(r"\1", answer).split())
    return plain.lower() if BARE_WORDS.fullmatch(plain) and not re.search(r"\b(?:and|or)\b", plain) else None


def values(answer: str) -> list[str]:
    r"""The values of a list such as "1, (2,3) or 4" or `\{1, 2\}`, normalised; one value of anything else."""
    text = IN_TEXT.sub(lambda match: match[1] if match[1].strip(" ,") in ("and", "or") else match.group(), answer)
    text = re.sub(r"^\s*\\\{(.*)\\\}\s*$", r"\1", text, flags=re.DOTALL)
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"\\?[()\[\]{}]|(?<!\\),|\b(?:and|or)\b", text):
        if match.group()[-1] in "([{":
            depth += 1
        elif match.group()[-1] in ")]}":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    parts.append(text[start:])
    return [normalise(part) for part in parts if part.strip(" \\;~")]


def both_signs(text: str) -> tuple[str, ...]:
    r"""1 \pm 2 is 1 + 2 and 1 - 2."""
    return (PLUS_MINUS.sub("+", text), PLUS_MINUS.sub("-", text)) if len(PLUS_MINUS.findall(text)) == 1 else (text,)
