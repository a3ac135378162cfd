"""A registry of container images: `oci://HOST[/PREFIX]`, and an image by its digest for one build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.distribution.kind import Kind, RemoteAccess
from adapterhub.library.remotes import is_oci_path, parse_url

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.oci import OciRegistry
    from adapterhub.formats.release import Release
    from adapterhub.library.transfer import Place, Source


class OciKind(Kind):
    """See the module."""

    name = "oci"
    pin_keys = ("repo", "image")

    def parse_address(self, text: str) -> str:
        """Return the address, normalized."""
        normal = parse_url(text, self.name)
        prefix = normal.partition("://")[2].partition("/")[2]
        if prefix and not is_oci_path(prefix):
            expected = "oci://HOST[:PORT][/PREFIX], with a prefix of lower-case words"
            raise UsageProblem(f"`{shown(text)}` is not the address of an OCI registry: expected {expected}")
        return normal

    def open(self, address: str, access: RemoteAccess) -> OciRegistry:
        """Return the registry; without a token, it is asked with what Docker's programs keep for its host."""
        from adapterhub.distribution.http.wire import bound_client
        from adapterhub.distribution.oci import OciRegistry

        bound_client(access.silence_s)
        return OciRegistry(
            address,
            token=access.token,
            label=access.label,
            silence_s=access.silence_s,
            variables=access.variables,
        )

    def claims(self, place: str) -> bool:
        """Return whether it is the address of a registry."""
        return place.startswith("oci://")

    def destination(self, source: Source, repository: str, *, private: bool, signs_again: bool) -> Place:  # noqa: ARG002 - the protocol
        """Return the repository; who may read it is not for us to say."""
        if private:
            raise UsageProblem("an OCI registry itself decides who may read a repository; leave out `--private`")
        return _registry(source).to(repository)

    def within(self, source: Source, namespace: str) -> Source:
        """One namespace of the registry."""
        return _registry(source).within(namespace)

    def pin(self, source: Source, release: Release) -> Mapping[str, str]:
        """Return the repository and the digest of the image."""
        repository, image = _registry(source).place_of(release)
        return {"repo": repository, "image": image}

    def pinned(self, source: Source, pin: Mapping[str, str], spec: AdapterSpec) -> Iterable[Source]:
        """Yield the image, then the registry: the same release may be under another tag."""
        yield _registry(source).at(pin["repo"], pin["image"])
        if spec.namespace is not None:
            yield source

    def problems(self, address: str, pin: Mapping[str, str]) -> list[str]:
        """Return the faults of a pin: the address is normal, the repository has a name, the image a digest."""
        found = super().problems(address, pin)
        if (repo := pin.get("repo")) and not is_oci_path(repo):
            found.append(f"repo: expected the path of a repository, got `{shown(repo)}`")
        if image := pin.get("image"):
            try:
                parse_digest(image)
            except ValueError as error:
                found.append(f"image: {error}")
        return found

    def describe(self, address: str, pin: Mapping[str, str]) -> str:
        """`acme/legal-qa at 0123456789ab of oci://…`."""
        return f"{pin['repo']} at {pin['image'][7:19]} of {address}"


def _registry(source: Source) -> OciRegistry:
    registry: Any = getattr(source, "registry", source)  # a part of a registry, or the registry
    return registry  # type: ignore[no-any-return]


KIND: Final = OciKind()
