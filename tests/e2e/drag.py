"""A window that offers one file to whoever it is dragged onto, by the same X11 protocol (XDND) a file manager uses.

Usage: drag.py FILE X Y     (the window's corner on the screen; Debian: python3-gi, gir1.2-gtk-3.0)
Prints "ready" once it can be dragged from, and "dropped" or "refused" after each drag.
"""

import sys
from pathlib import Path

import gi

gi.require_version("Gdk", "3.0")
gi.require_version("Gtk", "3.0")
from gi.repository import Gdk, Gtk  # noqa: E402

path, x, y = Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3])
outcome = {"failed": False}


def say(word):
    print(word, flush=True)


def give(_widget, _context, data, _info, _time):
    data.set_uris([path.as_uri()])


def failed(_widget, _context, _result):
    outcome["failed"] = True
    return True


def ended(_widget, _context):
    say("refused" if outcome.pop("failed") else "dropped")
    outcome["failed"] = False


# Takes the focus when it is pressed, as a file manager does, and not before.
window = Gtk.Window(type=Gtk.WindowType.TOPLEVEL)
window.set_decorated(False)
window.set_focus_on_map(False)
box = Gtk.EventBox()
box.add(Gtk.Label(label=path.name))
box.drag_source_set(Gdk.ModifierType.BUTTON1_MASK, [], Gdk.DragAction.COPY)
box.drag_source_add_uri_targets()
box.connect("drag-data-get", give)
box.connect("drag-failed", failed)
box.connect("drag-end", ended)
window.add(box)
window.set_default_size(160, 60)
window.move(x, y)
window.connect("map-event", lambda *_: say("ready"))
window.show_all()
Gtk.main()
