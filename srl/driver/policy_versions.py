"""Which update of the policy each version of the weights carries."""

from dataclasses import dataclass, field


@dataclass
class PolicyVersions:
    """The same policy may be sent under several versions: every sync has a version of its own, also one to late workers.

    `newest` is the version sent last, `update` the update of the policy that the workers hold.
    """

    newest: int = 0
    update: int = 0
    update_of: dict[int, int] = field(default_factory=dict)

    def go_on_after(self, version: int) -> None:
        """Versions up to that are taken."""
        self.newest = max(self.newest, version)

    def is_of_the_step_before(self, version: int) -> None:
        """That version carries the policy before the one that the workers hold."""
        self.update_of[version] = self.update - 1

    def next(self, changed: bool) -> int:
        """The version of weights about to be sent, which are of the next update if `changed`.

        Workers may sample with them before all have them.
        """
        self.newest += 1
        self.update_of[self.newest] = self.update + changed
        return self.newest

    def arrived(self) -> None:
        """All workers hold the weights sent last."""
        self.update = self.update_of[self.newest]

    def ages(self) -> dict[int, int]:
        """How many updates each version is away from what the workers hold.

        One that was lost on its way, together with the learners, was of an update that did not come to be: it is one away, too.
        """
        return {version: abs(self.update - update) for version, update in self.update_of.items()}
