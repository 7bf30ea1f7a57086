"""Elements of HTML and SVG. Every text is escaped when the document is written, so that none is taken for markup."""

from importlib.resources import files
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ..reports import in_xml

Content = Element | str | None
"""What an element holds: elements and texts; None holds nothing."""

TIMES = "\N{MULTIPLICATION SIGN}"

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing. Only its own style sheet applies."""


def element(name: str, /, *content: Content, **attributes: object) -> Element:
    """Return an element.

    Args:
        name: Name of the element.
        content: Texts and elements, in order.
        attributes: Attributes; an underscore at the end is left out, and others become hyphens. None leaves an
            attribute out.
    """
    given = {key.rstrip("_").replace("_", "-"): in_xml(str(v)) for key, v in attributes.items() if v is not None}
    made = Element(name, given)
    last: Element | None = None
    for part in content:
        if isinstance(part, Element):
            made.append(part)
            last = part
        elif part is not None and last is None:
            made.text = (made.text or "") + in_xml(part)
        elif part is not None and last is not None:
            last.tail = (last.tail or "") + in_xml(part)
    return made


def document(title: str, *content: Content) -> bytes:
    """Return an HTML document in UTF-8, with the style sheet of reports in it."""
    html = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("style", files(__package__).joinpath("report.css").read_text("utf-8")),
        ),
        element("body", *content),
        lang="en",
    )
    return b"<!DOCTYPE html>\n" + ElementTree.tostring(html, "utf-8", method="html") + b"\n"


def table(header: list[str], rows: list[list[Content]], *, caption: str, numbers: set[int] | None = None) -> Element:
    """Return a table whose first column names the rows, in a box that scrolls on a narrow screen.

    Args:
        header: Titles of the columns.
        rows: Cells of each row.
        caption: What the table shows.
        numbers: Columns that are aligned to the right.
    """

    def kind(column: int) -> str | None:
        return "number" if column in (numbers or set()) else None

    head = element("tr", *(element("th", title, scope="col", class_=kind(i)) for i, title in enumerate(header)))
    body = [
        element("tr", *(element("th" if i == 0 else "td", cell, scope="row" if i == 0 else None, class_=kind(i))
                        for i, cell in enumerate(row)))
        for row in rows
    ]  # fmt: skip
    made = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def drawing(name: str, width: float, height: float, title: str, description: str, *content: Content) -> Element:
    """Return an SVG image with the title and the description that a screen reader speaks.

    Args:
        name: Name of the image, of which its ids are made.
        width: Width in units; the image is as wide as the place where it stands.
        height: Height in the same units.
        title: What the image shows.
        description: What can be seen in it.
        content: Its elements.
    """
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-description"),
        *content,
        viewBox=f"0 0 {width:g} {height:g}", role="img", aria_labelledby=f"{name}-title {name}-description",
    )  # fmt: skip


def text(x: float, y: float, content: str, class_: str | None = None, anchor: str = "middle") -> Element:
    """Return a text of an SVG image whose middle, or `anchor`, is at a point of its baseline."""
    return element("text", content, x=f"{x:g}", y=f"{y:g}", class_=class_, text_anchor=anchor)


def line(*points: tuple[float, float], class_: str, arrow: bool = False) -> Element:
    """Return a line of an SVG image through points, with an arrow at its end if `arrow`."""
    path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
    return element("path", d=path, class_=class_, marker_end="url(#arrow)" if arrow else None)
