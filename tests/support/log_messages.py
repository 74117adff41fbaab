"""What the pack tells its users."""

import pytest


def messages(caplog) -> list[str]:
    """All that the pack has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "ebca"]


def refused(call, *parts: str) -> str:
    """The call raises ValueError with all of `parts` in its message, which is short; the message."""
    with pytest.raises(ValueError) as refusal:
        call()
    message = str(refusal.value)
    assert all(part in message for part in parts), message
    assert len(message) < 500
    return message
