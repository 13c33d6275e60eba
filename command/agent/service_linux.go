package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// managed runs an agent for systemd where that has started it, as sd_notify(3) describes it.
func managed(run func(context.Context, manager) int) int {
	socket := os.Getenv("NOTIFY_SOCKET")
	every := watchdog(os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID"), os.Getpid())
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name) // it is not meant for the agent's own programs
	}
	if socket == "" {
		return run(context.Background(), manager{})
	}
	// A name that begins with @ is one without a file.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		fmt.Fprintf(os.Stderr, "==> NOTIFY_SOCKET: nobody is told that the agent is ready: %v\n", err)
		return run(context.Background(), manager{})
	}
	defer conn.Close()
	return run(context.Background(), systemd(conn, every))
}

// systemd tells it on conn, and every so often that the agent is well. If that fails there is nobody to tell.
func systemd(conn *net.UnixConn, every time.Duration) manager {
	send := func(text string) {
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		conn.Write([]byte(text))
	}
	return manager{
		tell: func(p phase) {
			switch p {
			case starting:
				send("STATUS=Starting")
			case admission:
				send("STATUS=Waiting for a certificate from the servers")
			case serving:
				send("READY=1\nSTATUS=Serving")
			case reloading:
				send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=Loading the configuration", monotonic().Microseconds()))
			case stopping:
				send("STOPPING=1\nSTATUS=Stopping")
			}
		},
		alive: func() { send("WATCHDOG=1") },
		every: every,
	}
}

// watchdog is how often systemd wants to hear of this process: half of what it waits, in microseconds. It is 0 when
// there is no watchdog, or it is for another process.
func watchdog(usec, pid string, self int) time.Duration {
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(24*time.Hour/time.Microsecond) || pid != "" && pid != strconv.Itoa(self) {
		return 0
	}
	return max(time.Duration(n)*time.Microsecond/2, time.Microsecond)
}

// monotonic is the time on the clock that systemd compares with its own.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
