"""Where a schema's references lead: within it, to what it bundles, or to files beside it; never to the network."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

from factory_agents.contracts.documents import Document, KeyPath, did_you_mean, parse_document, read_document

__all__ = ["Place", "References"]


class Place(NamedTuple):
    """A subschema: in which file's document, at which path, and in which resource of that file (where ``#`` leads, what ``$id`` says)."""

    document: Document
    uri: str
    path: KeyPath
    resource: KeyPath
    base: str
    id_key: str = "$id"

    @property
    def data(self) -> Any:
        """What stands there."""
        value: Any = self.document.data
        for key in self.path:
            value = value[key]
        return value

    def inner(self, *keys: str | int) -> Place:
        """A place further in; one with an ``$id`` is a resource of its own."""
        place = self
        for key in keys:
            place = place._replace(path=(*place.path, key)).entered()
        return place

    def entered(self) -> Place:
        """The same, as a resource of its own if it has an ``$id``."""
        id_ = self.data.get(self.id_key) if isinstance(self.data, dict) else None
        if not isinstance(id_, str) or id_.startswith("#"):
            return self
        return self._replace(resource=self.path, base=urldefrag(urljoin(self.base, id_)).url)


class References:
    """The files that a schema is made of.

    ``folder`` is where relative references of ``document`` start. With ``texts`` only these are read, by their names relative to it.
    """

    def __init__(self, document: Document, path: KeyPath, folder: Path, texts: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._texts = texts
        self.uri = (folder / "contract").as_uri()
        self.files: dict[str, Document] = {}
        self._starts: dict[str, KeyPath] = {}
        self._resources: dict[str, Place] = {}
        self._anchors: dict[tuple[str, str], Place] = {}
        self.top = self._enter(document, self.uri, path)

    def _enter(self, document: Document, uri: str, path: KeyPath) -> Place:
        """Begin to know a document: its resources and anchors."""
        data = Place(document, uri, path, path, uri).data
        old = isinstance(data, dict) and "draft-04" in str(data.get("$schema"))
        top = Place(document, uri, path, path, uri, "id" if old else "$id")
        self._starts[uri] = path
        self._resources[uri] = top
        self._register(top.entered())
        return top.entered()

    def _register(self, place: Place) -> None:
        data = place.data
        if isinstance(data, dict):
            self._resources.setdefault(place.base, place)
            id_ = data.get(place.id_key)
            for name in (data.get("$anchor"), data.get("$dynamicAnchor"), id_[1:] if isinstance(id_, str) and id_[:1] == "#" else None):
                if isinstance(name, str):
                    self._anchors.setdefault((place.base, name), place)
        for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
            self._register(place.inner(key))

    def target(self, place: Place) -> Place | None:
        """Where ``$ref`` leads, None without one; ContractError where it leads nowhere, out of the files or to the network."""
        reference = place.data.get("$ref")
        if not isinstance(reference, str):
            return None
        address, fragment = urldefrag(reference)
        if not address:
            resource = place._replace(path=place.resource)
        else:
            known = self._resources.get(urldefrag(urljoin(place.base, address)).url)
            resource = known if known is not None else self._file(place, address)
        fragment = unquote(fragment)
        found = self._within(resource, fragment)
        if found is None and not address:  # an $id that was only meant as a name, as generators write it into every property
            found = self._within(self._resources[place.uri], fragment)
        if found is None:
            missing, names = self._missing(resource, fragment)
            message = f"{reference!r} leads nowhere: there is no {missing!r} in {resource.document.name}{did_you_mean(missing, names)}"
            place.document.fail((*place.path, "$ref"), message)
        return found

    def _within(self, resource: Place, fragment: str) -> Place | None:
        """The place that an anchor or a pointer names within a resource."""
        if fragment and not fragment.startswith("/"):
            return self._anchors.get((resource.base, fragment))
        place = resource
        for name in _names(fragment):
            key = _keys(place.data).get(name)
            if key is None:
                return None
            place = place.inner(key)
        return place

    def _missing(self, resource: Place, fragment: str) -> tuple[str, Iterable[str]]:
        """The first name of a pointer that isn't there, and those that are."""
        place = resource
        for name in _names(fragment):
            keys = _keys(place.data)
            if name not in keys:
                return name, keys
            place = place.inner(keys[name])
        return fragment, [anchor for base, anchor in self._anchors if base == resource.base]

    def _file(self, place: Place, address: str) -> Place:
        at = (*place.path, "$ref")
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or address.startswith("/"):
            message = f"expected a reference to a file, relative to this one, got {address!r}; nothing is fetched from the network"
            place.document.fail(at, message)
        uri = urljoin(place.uri, quote(address, safe="/?#[]@!$&'()*+,;=:%"))
        if uri not in self.files:
            name = self.relative(uri)
            self.files[uri] = self._read(name, lambda why: place.document.fail(at, f"expected a file, got {address!r}, but {why}"))
            return self._enter(self.files[uri], uri, ())
        return self._resources[uri].entered()

    def _read(self, name: str, fail: Callable[[str], Any]) -> Document:
        if self._texts is not None:
            if name not in self._texts:
                fail(f"{name} did not come along")
            return parse_document(self._texts[name], name)
        file = self._folder / name
        if not file.is_file():
            fail(f"there is no {file}")
        return read_document(file, name)

    def relative(self, uri: str) -> str:
        """A file's name relative to the contract's folder: the same on every machine."""
        return Path(os.path.relpath(url2pathname(urlsplit(uri).path), self._folder)).as_posix()

    def start(self, uri: str) -> KeyPath:
        """Where in a document the schema stands."""
        return self._starts[uri]

    def canonical(self, place: Place) -> str:
        """An address of the place by its file alone, whatever ``$id`` says."""
        pointer = "".join(f"/{quote(str(key).replace('~', '~0').replace('/', '~1'))}" for key in place.path[len(self._starts[place.uri]) :])
        return f"{place.uri}#{pointer}"


def _names(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _keys(data: Any) -> dict[str, str | int]:
    """What a pointer may name next."""
    if isinstance(data, (dict, list)):
        return {str(key): key for key in (data if isinstance(data, dict) else range(len(data)))}
    return {}
