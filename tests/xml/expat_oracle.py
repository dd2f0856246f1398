"""What expat makes of XML documents: a second opinion for the tests of the XML layer.

Reads documents on standard input, each as a 4-byte big-endian length and the bytes, and answers each in the
same way with b"E" and a reason if expat refuses it, or b"A" and the canonical form of the children of its
root. Canonical form, where <s> is a string as "length:bytes": an element is "(" <namespace> <name>, then
"@" <namespace> <name> <value> for each attribute sorted by namespace and name, its content, ")"; text is
"T" <s>, without two in a row.
"""

import struct
import sys
from xml.parsers import expat

# Cannot occur in XML, so it cannot be mistaken for a part of a name or a namespace.
SEPARATOR = "\x01"


def string(text):
    data = text.encode("utf-8")
    return b"%d:%s" % (len(data), data)


def split(name):
    namespace, _, local = name.rpartition(SEPARATOR)
    return namespace, local


class Canonical:
    def __init__(self):
        self.out = []
        self.depth = 0
        self.pending = []

    def flush(self):
        if self.pending and self.depth > 1:
            self.out.append(b"T" + string("".join(self.pending)))
        self.pending = []

    def start(self, name, attributes):
        self.flush()
        self.depth += 1
        if self.depth == 1:
            return
        namespace, local = split(name)
        self.out.append(b"(" + string(namespace) + string(local))
        pairs = [(*split(attributes[i]), attributes[i + 1]) for i in range(0, len(attributes), 2)]
        # Sorted by bytes, as the other side does.
        for namespace, local, value in sorted(pairs, key=lambda p: (p[0].encode(), p[1].encode())):
            self.out.append(b"@" + string(namespace) + string(local) + string(value))

    def end(self, _name):
        self.flush()
        if self.depth > 1:
            self.out.append(b")")
        self.depth -= 1

    def text(self, data):
        self.pending.append(data)


def judge(document):
    canonical = Canonical()
    parser = expat.ParserCreate("utf-8", SEPARATOR)
    parser.ordered_attributes = True
    parser.StartElementHandler = canonical.start
    parser.EndElementHandler = canonical.end
    parser.CharacterDataHandler = canonical.text
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        return b"E" + str(error).encode()
    return b"A" + b"".join(canonical.out)


def main():
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(prefix := source.read(4)) == 4:
        answer = judge(source.read(struct.unpack(">I", prefix)[0]))
        sink.write(struct.pack(">I", len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    main()
