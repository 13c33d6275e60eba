package agent

import (
	"bytes"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// syslogFacilities are the names of syslog_facility, in the order of their numbers (RFC 5424, section 6.2.1).
var syslogFacilities = strings.Fields(`KERN USER MAIL DAEMON AUTH SYSLOG LPR NEWS UUCP CRON AUTHPRIV FTP - - - -
	LOCAL0 LOCAL1 LOCAL2 LOCAL3 LOCAL4 LOCAL5 LOCAL6 LOCAL7`)

// A syslogWriter sends lines of a level to the system's log.
type syslogWriter interface {
	Log(level hclog.Level, line string) error
	Close() error
}

// A syslogSink passes on what is logged at the logger's level or above it. The system's log adds the time.
type syslogSink struct {
	to    syslogWriter
	level func() hclog.Level

	mu   sync.Mutex
	line bytes.Buffer
	form hclog.Logger // writes to line
}

func newSyslogSink(to syslogWriter, level func() hclog.Level) *syslogSink {
	s := &syslogSink{to: to, level: level}
	s.form = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &s.line, DisableTime: true})
	return s
}

// Accept implements hclog.SinkAdapter.
func (s *syslogSink) Accept(name string, level hclog.Level, msg string, args ...any) {
	if level < s.level() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line.Reset()
	s.form.ResetNamed(name).Log(level, msg, args...)
	s.to.Log(level, strings.TrimSuffix(s.line.String(), "\n")) // if it fails there is nobody to tell
}
