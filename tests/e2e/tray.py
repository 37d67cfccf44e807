"""Stands in for a desktop that draws tray icons (StatusNotifierWatcher), and works the icon's menu.

Reads commands from standard input: `menu` prints the menu's labels as one line of JSON, submenus nested, a chosen item
marked with a star; `choose LABEL` clicks an item. Prints `watching` once icons can register and `icon` when one did.
"""

import json
import sys
import threading

from gi.repository import Gio, GLib

WATCHER = "org.kde.StatusNotifierWatcher"
INTERFACE = f"""<node><interface name="{WATCHER}">
  <method name="RegisterStatusNotifierItem"><arg type="s" direction="in"/></method>
  <method name="RegisterStatusNotifierHost"><arg type="s" direction="in"/></method>
  <property name="IsStatusNotifierHostRegistered" type="b" access="read"/>
  <property name="ProtocolVersion" type="i" access="read"/>
  <property name="RegisteredStatusNotifierItems" type="as" access="read"/>
</interface></node>"""
PROPERTIES = {
    "IsStatusNotifierHostRegistered": GLib.Variant("b", True),
    "ProtocolVersion": GLib.Variant("i", 0),
    "RegisteredStatusNotifierItems": GLib.Variant("as", []),
}

bus = Gio.bus_get_sync(Gio.BusType.SESSION)
icon = {}


def say(text):
    print(text, flush=True)


def called(_bus, sender, _path, _interface, method, arguments, invocation):
    invocation.return_value(None)
    if method == "RegisterStatusNotifierItem":
        icon.update(owner=sender, path=arguments.unpack()[0])
        say("icon")


def ask(path, interface, method, arguments):
    return bus.call_sync(icon["owner"], path, interface, method, arguments, None, Gio.DBusCallFlags.NONE, 5000, None)


def layout():
    get = GLib.Variant("(ss)", ("org.kde.StatusNotifierItem", "Menu"))
    menu = ask(icon["path"], "org.freedesktop.DBus.Properties", "Get", get).unpack()[0]
    ask(menu, "com.canonical.dbusmenu", "AboutToShow", GLib.Variant("(i)", (0,)))
    everything = GLib.Variant("(iias)", (0, -1, []))
    return menu, ask(menu, "com.canonical.dbusmenu", "GetLayout", everything).unpack()[1]


def label(properties):
    text = properties.get("label", "").replace("_", "")
    return text + ("*" if properties.get("toggle-state") == 1 else "")


def labels(item):
    shown = [child for child in item[2] if child[1].get("type") != "separator"]
    return [[label(child[1]), labels(child)] if child[2] else label(child[1]) for child in shown]


def find(item, wanted):
    if label(item[1]).rstrip("*") == wanted:
        return item[0]
    return next((found for found in (find(child, wanted) for child in item[2]) if found), None)


def obey(line):
    command, _, argument = line.strip().partition(" ")
    menu, root = layout()
    if command == "menu":
        say(json.dumps(labels(root), ensure_ascii=False))
    elif command == "choose":
        clicked = GLib.Variant("(isvu)", (find(root, argument), "clicked", GLib.Variant("s", ""), 0))
        ask(menu, "com.canonical.dbusmenu", "Event", clicked)
        say("chosen")
    return False


def read():
    for line in sys.stdin:
        GLib.idle_add(obey, line)
    GLib.idle_add(loop.quit)


loop = GLib.MainLoop()
interface = Gio.DBusNodeInfo.new_for_xml(INTERFACE).interfaces[0]
bus.register_object("/StatusNotifierWatcher", interface, called, lambda *a: PROPERTIES[a[4]], None)
Gio.bus_own_name_on_connection(bus, WATCHER, Gio.BusNameOwnerFlags.NONE, lambda *_: say("watching"), None)
threading.Thread(target=read, daemon=True).start()
loop.run()
