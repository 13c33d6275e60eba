package config

import (
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
)

// ParseLevel returns the log level a name stands for, in any case.
func ParseLevel(name string) (hclog.Level, error) {
	switch strings.ToUpper(name) {
	case "TRACE", "DEBUG", "INFO", "WARN", "ERROR":
		return hclog.LevelFromString(name), nil
	case "ERR":
		return hclog.Error, nil
	}
	return hclog.NoLevel, fmt.Errorf("Invalid log level: %s. Valid log levels are: [TRACE DEBUG INFO WARN ERR ERROR]", name) //nolint:staticcheck // clients match the text
}

// CheckNodeID reports a configured node ID that is not a UUID.
func (s *Settings) CheckNodeID() error {
	if s.Node.ID == "" {
		return nil
	}
	if _, err := uuid.Parse(s.Node.ID); err != nil || len(s.Node.ID) != 36 {
		if err == nil {
			err = fmt.Errorf("uuid string is wrong length")
		}
		return fmt.Errorf("specified NodeID is invalid: %w", err)
	}
	return nil
}

// CheckStart reports what is not looked at when a configuration is only validated: what an agent refuses to start with,
// though a reload or the validate command does not mind. The log level and the node ID are not among it; see ParseLevel
// and CheckNodeID.
func (s *Settings) CheckStart() error {
	var p Problems
	add := func(format string, args ...any) { p = append(p, fmt.Errorf(format, args...)) }
	if s.ACL.Enabled {
		if d := s.ACL.DefaultPolicy; d != "allow" && d != "deny" {
			add("Unsupported default ACL policy: %s", d)
		}
		if d := s.ACL.DownPolicy; !slices.Contains([]string{"allow", "deny", "extend-cache", "async-cache"}, d) {
			add("Unsupported down ACL policy: %s", d)
		}
	}
	if key, err := base64.StdEncoding.DecodeString(s.Gossip.Key); err == nil && s.Gossip.Key != "" && !slices.Contains([]int{16, 24, 32}, len(key)) {
		add("encrypt: key size must be 16, 24 or 32 bytes")
	}
	if s.Protocol < 2 {
		add("Protocol version '%d' too low. Must be in range: [2, 3]", s.Protocol)
	} else if s.Protocol > 3 {
		add("Protocol version '%d' too high. Must be in range: [2, 3]", s.Protocol)
	}
	for _, w := range s.Watches {
		if err := checkWatch(w); err != nil {
			p = append(p, err)
		}
	}
	auto := s.AutoEncrypt.TLS || s.AutoConfig.Enabled // brings CA and certificate later
	for _, t := range []TLSStanza{s.TLS.InternalRPC, s.TLS.HTTPS, s.TLS.GRPC} {
		hasCA := t.CAFile != "" || t.CAPath != ""
		switch {
		case auto:
		case t.VerifyOutgoing && !hasCA:
			add("VerifyOutgoing set but no CA certificates were provided")
		case t.VerifyIncoming && !hasCA:
			add("VerifyIncoming set but no CA certificates were provided")
		case t.VerifyIncoming && (t.CertFile == "" || t.KeyFile == ""):
			add("VerifyIncoming requires either a Cert and Key pair in the configuration file, or auto_encrypt/auto_config be enabled")
		}
	}
	if m := s.UnixSockets.Mode; m != "" {
		if _, err := strconv.ParseUint(m, 8, 32); err != nil {
			add("unix_sockets.mode: invalid mode: %q", m)
		}
	}
	for _, d := range s.Services {
		if d.Name == "" {
			add("Failed to register service %q (%v): Service name missing", d.ID, d.Pos)
		}
	}
	if len(p) == 0 {
		return nil
	}
	return p
}

// FileMode is the mode of unix sockets, 0 to leave it alone.
func (u UnixSockets) FileMode() os.FileMode {
	mode, _ := strconv.ParseUint(u.Mode, 8, 32)
	return os.FileMode(mode)
}

// watchTypes are the parameters each type of watch takes; those that end in * are required.
var watchTypes = map[string]string{
	"key":           "key* stale",
	"keyprefix":     "prefix* stale",
	"services":      "stale filter",
	"nodes":         "stale filter",
	"service":       "service* tag passingonly stale filter",
	"checks":        "service state stale filter",
	"event":         "name",
	"connect_roots": "",
	"connect_leaf":  "service*",
	"agent_service": "service_id*",
}

// checkWatch checks one watch: its type, parameters and handler.
func checkWatch(w map[string]any) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("Failed to parse watch (%v): %s", w["type"], fmt.Sprintf(format, args...)) //nolint:staticcheck // clients match the text
	}
	kind, _ := w["type"].(string)
	if kind == "" {
		return fail("Watch type must be specified")
	}
	params, ok := watchTypes[kind]
	if !ok {
		return fail("Unsupported watch type: %s", kind)
	}
	handlers := 0
	for _, key := range []string{"args", "handler"} {
		if w[key] != nil {
			handlers++
		}
	}
	allowed := []string{"type", "datacenter", "token", "args", "handler", "handler_type", "http_handler_config"}
	for p := range strings.FieldsSeq(params) {
		name, required := strings.CutSuffix(p, "*")
		allowed = append(allowed, name)
		if v, _ := w[name].(string); required && v == "" {
			return fail("Must specify a single %s to watch", name)
		}
	}
	if kind == "checks" && w["service"] != nil && w["state"] != nil {
		return fail("Cannot specify service and state")
	}
	var unknown []string
	for key := range w {
		if !slices.Contains(allowed, key) {
			unknown = append(unknown, key)
		}
	}
	if slices.Sort(unknown); len(unknown) > 0 {
		return fail("Invalid parameters: %v", unknown)
	}
	switch handlerType, _ := w["handler_type"].(string); handlerType {
	case "", "script":
		if handlers == 0 {
			return fail("Must define a watch handler")
		}
	case "http":
		conf, _ := w["http_handler_config"].(map[string]any)
		if path, _ := conf["path"].(string); path == "" {
			return fail("Requires 'path' to be set in http_handler_config")
		}
	default:
		return fail("Handler type '%s' not recognized", handlerType)
	}
	if handlers > 1 {
		return fail("Only one watch handler allowed")
	}
	return nil
}
