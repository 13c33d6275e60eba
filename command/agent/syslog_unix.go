//go:build unix

package agent

import (
	"fmt"
	"log/syslog"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/internal/version"
)

// openSyslog connects to the system's log.
func openSyslog(facility string) (syslogWriter, error) {
	n := slices.Index(syslogFacilities, strings.ToUpper(facility))
	if n < 0 || facility == "-" {
		return nil, fmt.Errorf("syslog_facility: invalid syslog facility: %q", facility)
	}
	w, err := syslog.New(syslog.Priority(n<<3)|syslog.LOG_INFO, strings.ToLower(version.Name))
	if err != nil {
		return nil, fmt.Errorf("enable_syslog: %w", err)
	}
	return systemLog{w}, nil
}

type systemLog struct{ *syslog.Writer }

// Log implements syslogWriter.
func (s systemLog) Log(level hclog.Level, line string) error {
	switch level {
	case hclog.Error:
		return s.Err(line)
	case hclog.Warn:
		return s.Warning(line)
	case hclog.Info:
		return s.Info(line)
	}
	return s.Debug(line)
}
