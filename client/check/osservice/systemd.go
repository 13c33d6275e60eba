// Package osservice asks the system's service manager about services: systemd over D-Bus, or the one of Windows.
package osservice

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/client/check"
)

// An Asker returns the state of the service with this name.
type Asker func(ctx context.Context, name string) (check.ServiceState, error)

// Limits on what the bus may send before it answers.
const (
	maxMessage  = 64 << 10 // bytes
	maxMessages = 64
	maxUnitName = 255 // bytes, systemd's own limit
)

// unitTypes are the endings of unit names. A name without one is that of a service.
var unitTypes = []string{".service", ".socket", ".target", ".timer", ".mount", ".automount", ".swap", ".path", ".slice", ".scope", ".device"}

// Systemd returns an Asker for the units of systemd. dial connects to the system bus, for each question anew; uid is the
// user that asks.
func Systemd(dial func(ctx context.Context) (net.Conn, error), uid int) Asker {
	return func(ctx context.Context, name string) (check.ServiceState, error) {
		unit, err := unitName(name)
		if err != nil {
			return check.ServiceState{}, err
		}
		conn, err := dial(ctx)
		if err != nil {
			return check.ServiceState{}, fmt.Errorf("connect to the system bus: %w", err)
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		state, err := ask(conn, uid, unit)
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		}
		return state, err
	}
}

// unitName returns the unit that a name means.
func unitName(name string) (string, error) {
	if !slices.ContainsFunc(unitTypes, func(t string) bool { return strings.HasSuffix(name, t) && name != t }) {
		name += ".service"
	}
	if len(name) > maxUnitName {
		return "", fmt.Errorf("the name is longer than %d bytes", maxUnitName)
	}
	for _, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune(`:-_.\@`, r):
		default:
			return "", fmt.Errorf("no unit can have %q in its name", r)
		}
	}
	return name, nil
}

// ask introduces itself to the bus and asks systemd about one unit.
func ask(conn net.Conn, uid int, unit string) (check.ServiceState, error) {
	r := bufio.NewReaderSize(conn, 4096)
	// The words of the D-Bus specification, "Authentication Protocol"; the byte 0 comes before everything.
	if _, err := fmt.Fprintf(conn, "\x00AUTH EXTERNAL %s\r\n", hex.EncodeToString([]byte(strconv.Itoa(uid)))); err != nil {
		return check.ServiceState{}, fmt.Errorf("system bus: %w", err)
	}
	line, err := r.ReadSlice('\n') // no longer than the buffer
	if err != nil {
		return check.ServiceState{}, fmt.Errorf("system bus: %w", err)
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return check.ServiceState{}, errors.New("the system bus does not let this user in")
	}
	hello := call{serial: 1, destination: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", iface: "org.freedesktop.DBus", member: "Hello"}
	list := call{serial: 2, destination: "org.freedesktop.systemd1", path: "/org/freedesktop/systemd1", iface: "org.freedesktop.systemd1.Manager",
		member: "ListUnitsByNames", names: []string{unit}}
	if _, err := conn.Write(slices.Concat([]byte("BEGIN\r\n"), hello.encode(), list.encode())); err != nil {
		return check.ServiceState{}, fmt.Errorf("system bus: %w", err)
	}
	for range maxMessages {
		m, err := readMessage(r)
		if err != nil {
			return check.ServiceState{}, fmt.Errorf("system bus: %w", err)
		}
		switch {
		case m.kind == kindError && (m.replyTo == hello.serial || m.replyTo == list.serial):
			return check.ServiceState{}, fmt.Errorf("systemd: %s", m.errorText())
		case m.kind == kindReturn && m.replyTo == list.serial:
			return unitState(m, unit)
		}
	}
	return check.ServiceState{}, fmt.Errorf("system bus: no answer within %d messages", maxMessages)
}

// unitState reads the answer to ListUnitsByNames.
func unitState(m *message, unit string) (check.ServiceState, error) {
	units, err := m.units()
	if err != nil {
		return check.ServiceState{}, fmt.Errorf("systemd: %w", err)
	}
	i := slices.IndexFunc(units, func(u unitStatus) bool { return u.name == unit })
	if i < 0 && len(units) == 1 {
		i = 0 // under its real name, where the one asked for is an alias
	}
	if i < 0 {
		return check.ServiceState{}, errors.New("systemd: the answer is about other units")
	}
	u := units[i]
	s := check.ServiceState{Name: u.active, Running: u.active == "active", Stopped: u.active == "inactive" || u.active == "failed"}
	if u.active == "inactive" && u.load != "loaded" {
		s.Name = u.load // not-found, masked, …
	}
	return s, nil
}
