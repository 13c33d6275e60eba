"""Asks a DNS server for the A and SRV records of a name: what dig does, for machines without dig."""
import random, socket, struct, sys

(host, port), name = sys.argv[1].split(":"), sys.argv[2]


def read_name(data, at):
    labels, end = [], None
    while data[at]:
        if data[at] & 0xC0:
            end = end or at + 2
            at = ((data[at] & 0x3F) << 8) | data[at + 1]
            continue
        labels.append(data[at + 1 : at + 1 + data[at]].decode())
        at += 1 + data[at]
    return ".".join(labels) + ".", end or at + 1


def ask(kind, code):
    question = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0" + struct.pack(">HH", code, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        s.sendto(struct.pack(">HHHHHH", random.randrange(65536), 0x100, 1, 0, 0, 0) + question, (host, int(port)))
        data = s.recv(4096)
    at = 12 + len(question)
    for _ in range(struct.unpack(">H", data[6:8])[0]):
        owner, at = read_name(data, at)
        rtype, _, ttl, size = struct.unpack(">HHIH", data[at : at + 10])
        at += 10
        if rtype == 1:
            print(owner, ttl, "A", socket.inet_ntoa(data[at : at + 4]))
        elif rtype == 33:
            weights = struct.unpack(">HHH", data[at : at + 6])
            print(owner, ttl, "SRV", *weights, read_name(data, at + 6)[0])
        at += size


ask("A", 1)
ask("SRV", 33)
