package dns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// newBatch reads and writes many packets with one system call each where conn is a socket.
func newBatch(conn net.PacketConn) batch {
	u, ok := conn.(*net.UDPConn)
	if !ok {
		return &plainBatch{conn: conn}
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return &plainBatch{conn: conn}
	}
	b := &mmsgBatch{raw: raw, data: make([]byte, batchSize*dns.MaxMsgSize)}
	if local, ok := u.LocalAddr().(*net.UDPAddr); ok && local.IP.IsUnspecified() {
		// An answer must come from the address that was asked. A socket of IPv6 tells that of IPv4 packets too, and would
		// tell it twice with both options.
		b.tellsTo = true
		raw.Control(func(fd uintptr) {
			if unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) != nil {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
		})
	}
	for i := range batchSize {
		b.inVec[i].Base = &b.data[i*dns.MaxMsgSize]
	}
	b.recv = func(fd uintptr) bool {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
		b.n, b.errno = int(n), errno
		return errno != unix.EAGAIN
	}
	b.send = func(fd uintptr) bool {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[b.sent])), uintptr(b.sending-b.sent), unix.MSG_DONTWAIT, 0, 0)
		b.n, b.errno = int(n), errno
		return errno != unix.EAGAIN
	}
	return b
}

// An mmsghdr is the system's form of one packet of many.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// controlSize holds the address that a packet was sent to, of either family.
const controlSize = 64

// A mmsgBatch reads with recvmmsg and writes with sendmmsg. The address of a client is never unpacked: the answer goes
// where the question came from.
type mmsgBatch struct {
	raw     syscall.RawConn
	tellsTo bool // packets come with the address they were sent to

	data    []byte
	in      [batchSize]mmsghdr
	inVec   [batchSize]unix.Iovec
	names   [batchSize]unix.RawSockaddrInet6 // the longer of the two
	control [batchSize][controlSize]byte

	out     [batchSize]mmsghdr
	outVec  [batchSize]unix.Iovec
	sent    int
	sending int

	n          int
	errno      syscall.Errno
	recv, send func(fd uintptr) bool
}

func (b *mmsgBatch) read() (int, error) {
	for i := range b.in {
		h := &b.in[i].hdr
		b.inVec[i].SetLen(dns.MaxMsgSize)
		h.Iov = &b.inVec[i]
		h.SetIovlen(1)
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names[i])), unix.SizeofSockaddrInet6
		if b.tellsTo {
			h.Control = &b.control[i][0]
			h.SetControllen(controlSize)
		}
	}
	if err := b.raw.Read(b.recv); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", b.errno)
	}
	b.sending = 0
	return b.n, nil
}

func (b *mmsgBatch) msg(i int) []byte {
	return b.data[i*dns.MaxMsgSize : i*dns.MaxMsgSize+int(b.in[i].len)]
}

func (b *mmsgBatch) from(i int) netip.AddrPort {
	name := &b.names[i]
	port := func(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }
	if name.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port(&v4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), port(&name.Port))
}

func (b *mmsgBatch) answer(i int, out []byte) {
	if len(out) == 0 {
		return
	}
	j := b.sending
	b.sending++
	b.outVec[j].Base = &out[0]
	b.outVec[j].SetLen(len(out))
	h := &b.out[j].hdr
	*h = unix.Msghdr{Name: b.in[i].hdr.Name, Namelen: b.in[i].hdr.Namelen, Iov: &b.outVec[j]}
	h.SetIovlen(1)
	if b.tellsTo && b.in[i].hdr.Controllen > 0 {
		h.Control, h.Controllen = &b.control[i][0], b.in[i].hdr.Controllen
		fromHere(b.control[i][:h.Controllen])
	}
}

// fromHere makes what tells the address a packet was sent to into what gives the address to answer from. The interface
// is left to routing, except for addresses that mean nothing without it.
func fromHere(control []byte) {
	const hdr = unix.SizeofCmsghdr
	if len(control) < hdr {
		return
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(control) >= hdr+unix.SizeofInet4Pktinfo:
		(*unix.Inet4Pktinfo)(unsafe.Pointer(&control[hdr])).Ifindex = 0
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(control) >= hdr+unix.SizeofInet6Pktinfo:
		p := (*unix.Inet6Pktinfo)(unsafe.Pointer(&control[hdr]))
		if !netip.AddrFrom16(p.Addr).IsLinkLocalUnicast() {
			p.Ifindex = 0
		}
	}
}

// flush sends the answers. One that cannot be sent is lost, as any packet may be.
func (b *mmsgBatch) flush() {
	for b.sent = 0; b.sent < b.sending; {
		if err := b.raw.Write(b.send); err != nil {
			return
		}
		if b.errno != 0 {
			b.n = 1 // skip the one that failed
		}
		b.sent += b.n
	}
	runtime.KeepAlive(b)
}

func (b *mmsgBatch) replier(i int) func([]byte) error {
	name, size := b.names[i], b.in[i].hdr.Namelen
	var control []byte
	if b.tellsTo && b.in[i].hdr.Controllen > 0 {
		control = append(control, b.control[i][:b.in[i].hdr.Controllen]...)
		fromHere(control)
	}
	raw := b.raw
	return func(out []byte) error {
		if len(out) == 0 {
			return nil
		}
		var vec unix.Iovec
		vec.Base = &out[0]
		vec.SetLen(len(out))
		h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: size, Iov: &vec}
		h.SetIovlen(1)
		if control != nil {
			h.Control = &control[0]
			h.SetControllen(len(control))
		}
		var errno syscall.Errno
		err := raw.Write(func(fd uintptr) bool {
			_, _, errno = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT)
			return errno != unix.EAGAIN
		})
		if err == nil && errno != 0 {
			err = os.NewSyscallError("sendmsg", errno)
		}
		return err
	}
}
