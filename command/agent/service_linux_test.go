package agent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestWatchdogIsFedTwiceAsOftenAsItAsks(t *testing.T) {
	tests := []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"30000000", "", 15 * time.Second},
		{"30000000", "42", 15 * time.Second},
		{"30000000", "43", 0},
		{"30000000", "x", 0},
		{"1", "", time.Microsecond},
		{"0", "", 0},
		{"-1", "", 0},
		{"30s", "", 0},
		{"9223372036854775807", "", 0},
		{"9223372036854775808", "", 0},
	}
	for _, tt := range tests {
		if got := watchdog(tt.usec, tt.pid, 42); got != tt.want {
			t.Errorf("WATCHDOG_USEC=%s WATCHDOG_PID=%s: every %v, want %v", tt.usec, tt.pid, got, tt.want)
		}
	}
}

func TestSystemdIsTold(t *testing.T) {
	for name, socket := range map[string]string{
		"file":           filepath.Join(t.TempDir(), "notify"),
		"without a file": "@sarn-test-" + strconv.Itoa(os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			t.Setenv("NOTIFY_SOCKET", socket)
			t.Setenv("WATCHDOG_USEC", "8000000")
			t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
			code := managed(func(_ context.Context, m manager) int {
				if m.every != 4*time.Second {
					t.Errorf("tells that it is well every %v, want 4s", m.every)
				}
				for _, variable := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
					if v, ok := os.LookupEnv(variable); ok {
						t.Errorf("programs of the agent are given %s=%s", variable, v)
					}
				}
				for _, p := range []phase{starting, admission, serving, reloading, stopping} {
					m.say(p)
				}
				m.alive()
				return m.stopped()
			})
			if code != 0 {
				t.Errorf("code %d, want 0", code)
			}
			for _, want := range []string{"STATUS=Starting", "STATUS=Waiting", "READY=1\nSTATUS=Serving", "RELOADING=1\nMONOTONIC_USEC=", "STOPPING=1\n", "WATCHDOG=1"} {
				buf := make([]byte, 1024)
				l.SetReadDeadline(time.Now().Add(20 * time.Second))
				n, err := l.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				if got := string(buf[:n]); !strings.HasPrefix(got, want) {
					t.Errorf("told %q, want %q", got, want)
				}
			}
		})
	}
}

// The agent runs all the same, and its exit code is that for people.
func TestWithoutSystemdNobodyIsTold(t *testing.T) {
	for _, socket := range []string{"", filepath.Join(t.TempDir(), "nobody"), "@sarn-nobody-" + strconv.Itoa(os.Getpid()), "vsock:2:1234"} {
		t.Setenv("NOTIFY_SOCKET", socket)
		if code := managed(func(_ context.Context, m manager) int { m.say(serving); return m.stopped() }); code != 1 {
			t.Errorf("NOTIFY_SOCKET=%s: code %d, want 1", socket, code)
		}
	}
}
