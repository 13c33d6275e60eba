package config_test

import (
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/agent/config"
)

func TestRulesForWorkloads(t *testing.T) {
	s, _, err := config.Load(dev(`workload_api {
		socket = "/run/w.sock"
		rule { service = "web" uid = 0 path = "/usr/bin/web" }
		rule { service = "db" cgroup = "/system.slice/db.service" }
	}`))
	if err != nil {
		t.Fatal(err)
	}
	rules := s.WorkloadAPI.Rules
	if len(rules) != 2 || rules[0].UID == nil || *rules[0].UID != 0 || rules[0].GID != nil || rules[1].Cgroup != "/system.slice/db.service" {
		t.Errorf("%+v", rules)
	}
	for rule, want := range map[string]string{
		`service = "web"`:                    "at least one of uid, gid, path and cgroup",
		`uid = 5`:                            "must name a service",
		`service = "*" uid = 5`:              "must name a service",
		`service = "web" uid = -1`:           "-1 is no user or group",
		`service = "web" uid = 4294967296`:   "4294967296 is no user or group",
		`service = "web" uid = 1 user = "a"`: "user",
	} {
		_, _, err := config.Load(dev(`workload_api { socket = "/s" rule { ` + rule + ` } }`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", rule, err, want)
		}
	}
	if _, _, err := config.Load(dev(`workload_api { rule { service = "web" uid = 1 } }`)); err == nil || !strings.Contains(err.Error(), "no effect without") {
		t.Errorf("rules without a socket: %v", err)
	}
}
