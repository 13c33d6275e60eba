package osservice_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/client/check"
	"github.com/sarnmesh/sarn/client/check/osservice"
)

// A writer marshals values of D-Bus in either byte order. It is written for these tests alone, so that a mistake of the
// code under test is not made twice.
type writer struct {
	bytes.Buffer
	order binary.ByteOrder
}

func (w *writer) pad(n int) {
	for w.Len()%n != 0 {
		w.WriteByte(0)
	}
}

func (w *writer) u32(v int) {
	w.pad(4)
	var b [4]byte
	w.order.PutUint32(b[:], uint32(v))
	w.Write(b[:])
}

func (w *writer) str(s string) {
	w.u32(len(s))
	w.WriteString(s + "\x00")
}

func (w *writer) sig(s string) {
	w.WriteByte(byte(len(s)))
	w.WriteString(s + "\x00")
}

// reply returns a message that answers the call with this serial.
func reply(order binary.ByteOrder, kind byte, to int, errorName, signature string, body []byte) []byte {
	fields := &writer{order: order}
	fields.WriteByte(5)
	fields.sig("u")
	fields.u32(to)
	if errorName != "" {
		fields.pad(8)
		fields.WriteByte(4)
		fields.sig("s")
		fields.str(errorName)
	}
	fields.pad(8)
	fields.WriteByte(7)
	fields.sig("s")
	fields.str("org.freedesktop.DBus")
	if signature != "" {
		fields.pad(8)
		fields.WriteByte(8)
		fields.sig("g")
		fields.sig(signature)
	}
	m := &writer{order: order}
	m.Write([]byte{map[binary.ByteOrder]byte{binary.LittleEndian: 'l', binary.BigEndian: 'B'}[order], kind, 1, 1})
	m.u32(len(body))
	m.u32(77)
	m.u32(fields.Len())
	m.Write(fields.Bytes())
	m.pad(8)
	m.Write(body)
	return m.Bytes()
}

// unitList is the body of an answer to ListUnitsByNames about one unit.
func unitList(order binary.ByteOrder, name, load, active string) []byte {
	units := &writer{order: order}
	for _, s := range []string{name, "A description", load, active, "sub", "", "/org/freedesktop/systemd1/unit/x"} {
		units.str(s)
	}
	units.u32(9)
	units.str("start")
	units.str("/org/freedesktop/systemd1/job/9")
	w := &writer{order: order}
	w.u32(units.Len())
	w.pad(8)
	w.Write(units.Bytes())
	return w.Bytes()
}

// readCall reads a method call and returns all of it.
func readCall(r io.Reader) (string, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	body, fields := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[12:])
	rest := make([]byte, int(fields+7)/8*8+int(body))
	_, err := io.ReadFull(r, rest)
	return string(head) + string(rest), err
}

// bus is a stand-in for the system bus. Once it knows who calls, answer gets what was asked of systemd, and its result is
// sent.
func bus(t *testing.T, answer func(asked string) []byte) osservice.Asker {
	t.Helper()
	serve := func(conn net.Conn) {
		defer conn.Close()
		r := bufio.NewReader(conn)
		if line, err := r.ReadString('\n'); err != nil || line != "\x00AUTH EXTERNAL 31303030\r\n" { // 1000
			io.WriteString(conn, "REJECTED EXTERNAL\r\n")
			return
		}
		io.WriteString(conn, "OK 0123456789abcdef0123456789abcdef\r\n")
		if line, err := r.ReadString('\n'); err != nil || line != "BEGIN\r\n" {
			t.Errorf("got %q, %v, want BEGIN", line, err)
			return
		}
		if hello, err := readCall(r); err != nil || !strings.Contains(hello, "Hello\x00") {
			t.Errorf("got %q, %v, want a greeting", hello, err)
			return
		}
		name := &writer{order: binary.LittleEndian}
		name.str(":1.7")
		conn.Write(reply(binary.LittleEndian, 2, 1, "", "s", name.Bytes()))
		// A signal, as the bus sends to whoever is new.
		conn.Write(reply(binary.LittleEndian, 4, 0, "", "s", name.Bytes()))
		asked, err := readCall(r)
		if err != nil || !strings.Contains(asked, "ListUnitsByNames\x00") {
			t.Errorf("got %q, %v, want a question", asked, err)
			return
		}
		conn.Write(answer(asked))
		io.Copy(io.Discard, conn)
	}
	return osservice.Systemd(func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go serve(theirs)
		return ours, nil
	}, 1000)
}

func TestStatesOfUnits(t *testing.T) {
	for _, tt := range []struct {
		load, active string
		want         check.ServiceState
	}{
		{"loaded", "active", check.ServiceState{Name: "active", Running: true}},
		{"loaded", "reloading", check.ServiceState{Name: "reloading"}},
		{"loaded", "activating", check.ServiceState{Name: "activating"}},
		{"loaded", "deactivating", check.ServiceState{Name: "deactivating"}},
		{"loaded", "inactive", check.ServiceState{Name: "inactive", Stopped: true}},
		{"loaded", "failed", check.ServiceState{Name: "failed", Stopped: true}},
		{"not-found", "inactive", check.ServiceState{Name: "not-found", Stopped: true}},
		{"masked", "inactive", check.ServiceState{Name: "masked", Stopped: true}},
	} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			t.Run(tt.load+" "+tt.active, func(t *testing.T) {
				ask := bus(t, func(asked string) []byte {
					if !strings.Contains(asked, "\x0d\x00\x00\x00nginx.service\x00") {
						t.Errorf("asked %q", asked)
					}
					return reply(order, 2, 2, "", "a(ssssssouso)", unitList(order, "nginx.service", tt.load, tt.active))
				})
				if got, err := ask(t.Context(), "nginx"); err != nil || got != tt.want {
					t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
				}
			})
		}
	}
}

func TestNamesOfUnits(t *testing.T) {
	for name, want := range map[string]string{
		"nginx": "nginx.service", "nginx.service": "nginx.service", "my.app": "my.app.service", "ssh.socket": "ssh.socket",
		"getty@tty1": "getty@tty1.service", ".service": ".service.service",
	} {
		ask := bus(t, func(asked string) []byte {
			if !strings.Contains(asked, "\x00"+want+"\x00") {
				t.Errorf("%s: asked %q", name, asked)
			}
			return reply(binary.LittleEndian, 2, 2, "", "a(ssssssouso)", unitList(binary.LittleEndian, "the-real-name.service", "loaded", "active"))
		})
		if got, err := ask(t.Context(), name); err != nil || !got.Running {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	ask := osservice.Systemd(func(context.Context) (net.Conn, error) { t.Error("dialled"); return nil, io.EOF }, 0)
	for name, want := range map[string]string{
		"a b": "no unit can have ' ' in its name", "../x": "no unit can have '/' in its name", strings.Repeat("x", 300): "the name is longer than 255 bytes",
	} {
		if _, err := ask(t.Context(), name); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	text := &writer{order: binary.LittleEndian}
	text.str("nobody home")
	hugeBody := reply(binary.LittleEndian, 2, 2, "", "a(ssssssouso)", nil)
	binary.LittleEndian.PutUint32(hugeBody[4:], 1<<30)
	lying := &writer{order: binary.LittleEndian}
	lying.u32(1 << 30)
	for name, tt := range map[string]struct {
		answer []byte
		want   string
	}{
		"an error":           {reply(binary.LittleEndian, 3, 2, "org.freedesktop.DBus.Error.ServiceUnknown", "s", text.Bytes()), "systemd: org.freedesktop.DBus.Error.ServiceUnknown: nobody home"},
		"a wordless error":   {reply(binary.LittleEndian, 3, 2, "org.example.No", "", nil), "systemd: org.example.No"},
		"another type":       {reply(binary.LittleEndian, 2, 2, "", "s", text.Bytes()), "systemd: malformed message"},
		"too short":          {reply(binary.LittleEndian, 2, 2, "", "a(ssssssouso)", unitList(binary.LittleEndian, "nginx.service", "loaded", "active")[:40]), "systemd: malformed message"},
		"a length that lies": {reply(binary.LittleEndian, 2, 2, "", "a(ssssssouso)", lying.Bytes()), "systemd: malformed message"},
		"no unit":            {reply(binary.LittleEndian, 2, 2, "", "a(ssssssouso)", make([]byte, 8)), "systemd: the answer is about other units"},
		"a huge body":        {hugeBody, "system bus: a message is longer than 65536 bytes"},
		"another protocol":   {[]byte("HTTP/1.1 400 Bad Request\r\n"), "system bus: malformed message"},
		"endless signals":    {bytes.Repeat(reply(binary.LittleEndian, 4, 0, "", "", nil), 100), "system bus: no answer within 64 messages"},
	} {
		ask := bus(t, func(string) []byte { return tt.answer })
		if got, err := ask(t.Context(), "nginx"); err == nil || err.Error() != tt.want {
			t.Errorf("%s: %+v, %v, want %s", name, got, err, tt.want)
		}
	}
}

func TestSilentBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := bus(t, func(string) []byte { return nil })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := ask(ctx, "nginx"); err != context.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
	})
}

func TestBusThatRefuses(t *testing.T) {
	for answer, want := range map[string]string{
		"REJECTED EXTERNAL\r\n":   "the system bus does not let this user in",
		strings.Repeat("x", 9000): "system bus: bufio: buffer full",
	} {
		ask := osservice.Systemd(func(context.Context) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				bufio.NewReader(theirs).ReadString('\n')
				io.WriteString(theirs, answer)
				theirs.Close()
			}()
			return ours, nil
		}, 0)
		if _, err := ask(t.Context(), "nginx"); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	ask := osservice.Systemd(func(context.Context) (net.Conn, error) { return nil, io.EOF }, 0)
	if _, err := ask(t.Context(), "nginx"); err == nil || err.Error() != "connect to the system bus: EOF" {
		t.Errorf("no bus: %v", err)
	}
}

// FuzzBus has the bus say anything once it has let the agent in. Only an answer that names a state makes one.
func FuzzBus(f *testing.F) {
	f.Add(reply(binary.LittleEndian, 2, 2, "", "a(ssssssouso)", unitList(binary.LittleEndian, "nginx.service", "loaded", "active")))
	f.Add(reply(binary.BigEndian, 3, 2, "org.example.No", "s", []byte{0, 0, 0, 2, 'n', 'o', 0}))
	f.Fuzz(func(t *testing.T, data []byte) {
		ask := osservice.Systemd(func(context.Context) (net.Conn, error) {
			return &replay{in: bytes.NewReader(append([]byte("OK \r\n"), data...))}, nil
		}, 0)
		got, err := ask(t.Context(), "nginx")
		if err != nil && got != (check.ServiceState{}) {
			t.Errorf("%+v with %v", got, err)
		}
		if err == nil && (got.Running && got.Stopped || got.Running != (got.Name == "active")) {
			t.Errorf("%+v", got)
		}
		if err == nil && !bytes.Contains(data, []byte(got.Name)) {
			t.Errorf("%+v is not in the answer", got)
		}
	})
}

// A replay is a connection that says what it is told.
type replay struct {
	net.Conn
	in io.Reader
}

func (c *replay) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *replay) Write(p []byte) (int, error) { return len(p), nil }
func (c *replay) SetDeadline(time.Time) error { return nil }
func (c *replay) Close() error                { return nil }
