//go:build !unix

package agent

import "errors"

// openSyslog refuses: there is none.
func openSyslog(string) (syslogWriter, error) {
	return nil, errors.New("enable_syslog = true: this system has no syslog; use log_file")
}
