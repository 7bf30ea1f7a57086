"""A command as a user types it, in this process."""

from runtime.commands.main import main


def said(capsys, code, *arguments, command=main):
    """Run a command, check its exit code, and return what it printed."""
    assert command([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert not (code == 2 and captured.out)
    return captured.out if code != 2 else captured.err
