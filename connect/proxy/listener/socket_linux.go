package listener

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reusePort lets a new process take over a port while the old one drains.
func reusePort(_, _ string, rc syscall.RawConn) error {
	var serr error
	if err := rc.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); err != nil {
		return err
	}
	return serr
}

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.
const soOriginalDst = 80

// originalDst asks the kernel where a redirected connection was going. Of one
// that came to where it was going it knows nothing: sent on there, it would come
// back for ever.
func originalDst(c net.Conn) (netip.AddrPort, bool) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return netip.AddrPort{}, false
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, false
	}
	local := addrPort(t.LocalAddr())
	var out netip.AddrPort
	found := false
	err = rc.Control(func(fd uintptr) {
		if local.Addr().Is4() {
			var raw unix.RawSockaddrInet4
			size := uint32(unsafe.Sizeof(raw))
			if getsockopt(fd, unix.IPPROTO_IP, unsafe.Pointer(&raw), &size) {
				out, found = netip.AddrPortFrom(netip.AddrFrom4(raw.Addr), port(raw.Port)), true
			}
			return
		}
		var raw unix.RawSockaddrInet6
		size := uint32(unsafe.Sizeof(raw))
		if getsockopt(fd, unix.IPPROTO_IPV6, unsafe.Pointer(&raw), &size) {
			out, found = netip.AddrPortFrom(netip.AddrFrom16(raw.Addr).Unmap(), port(raw.Port)), true
		}
	})
	return out, err == nil && found && out != local
}

func getsockopt(fd uintptr, level int, p unsafe.Pointer, size *uint32) bool {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), soOriginalDst, uintptr(p), uintptr(unsafe.Pointer(size)), 0)
	return errno == 0
}

// port turns the bytes of a port in network order around.
func port(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}
