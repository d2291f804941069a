"""Renders the part of kustomize that cluster/ uses, where no kustomize is installed; anything else is refused, never ignored."""

from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
KEYS = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "images",
    "patches",
    "configMapGenerator",
    "generatorOptions",
    "namespace",
}


def render(folder: Path, documents: list[Document] | None = None) -> list[Document]:
    """The documents of a kustomization; a component also changes `documents`, those of the kustomization that names it."""
    file = folder / "kustomization.yaml"
    spec = yaml.safe_load(file.read_text())
    if unknown := set(spec) - KEYS:
        raise ValueError(f"{file}: not rendered here: {unknown}")
    documents = documents if documents is not None else []
    for name in spec.get("resources", []):
        path = (folder / name).resolve()
        documents += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for entry in spec.get("configMapGenerator", []):
        documents.append(config_map(folder, entry, spec["generatorOptions"]))
    for name in spec.get("components", []):
        documents = render((folder / name).resolve(), documents)
    for patch in spec.get("patches", []):
        documents = patched(documents, patch)
    for image in spec.get("images", []):
        for document in documents:
            retag(document, image["name"], image["newTag"])
    for document in documents:
        if "namespace" in spec:
            document["metadata"]["namespace"] = spec["namespace"]
    return documents


def config_map(folder: Path, entry: dict[str, Any], options: dict[str, Any]) -> Document:
    assert options == {"disableNameSuffixHash": True}, "names with a hash are not rendered here"
    metadata = {"name": entry["name"], "labels": entry.get("options", {}).get("labels", {})}
    data = {Path(name).name: (folder / name).read_text() for name in entry["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def patched(documents: list[Document], patch: dict[str, Any]) -> list[Document]:
    change = yaml.safe_load(patch["patch"])
    if isinstance(change, dict):
        if change.get("$patch") != "delete":
            raise ValueError(f"not rendered here: strategic merge patch {change}")
        same = (change["kind"], change["metadata"]["name"])
        return [document for document in documents if (document["kind"], document["metadata"]["name"]) != same]
    target = patch["target"]
    for document in documents:
        if (document["kind"], document["metadata"]["name"]) == (target["kind"], target["name"]):
            # Aliases in YAML are one object in Python; a patch must change one place only.
            document.update(unshared(document))
            for step in change:
                apply(document, step)
    return documents


def apply(document: Document, step: dict[str, Any]) -> None:
    """One step of a JSON patch (RFC 6902)."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].strip("/").split("/")]
    place: Any = document
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if isinstance(place, list) and step["op"] == "remove":
        del place[int(last)]
        return
    if isinstance(place, list):
        raise ValueError(f"not rendered here: patch of a list element: {step['path']}")
    if step["op"] not in ("add", "replace"):
        raise ValueError(f"not rendered here: patch operation {step['op']}")
    if step["op"] == "replace" and last not in place:
        raise KeyError(f"{step['path']}: nothing there to replace")
    place[last] = unshared(step["value"])


def unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def retag(value: Any, name: str, tag: str) -> None:
    """Set the tag of every container image of that name, at any depth, as kustomize does."""
    if isinstance(value, list):
        for item in value:
            retag(item, name, tag)
    elif isinstance(value, dict):
        for container in value.get("containers") or []:
            if str(container.get("image", "")).partition(":")[0] == name:
                container["image"] = f"{name}:{tag}"
        for item in value.values():
            retag(item, name, tag)
