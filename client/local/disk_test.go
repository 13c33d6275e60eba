package local_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sarnmesh/sarn/client/local"
)

// files returns the regular files below dir, by path relative to it.
func files(t *testing.T, dir string) map[string]os.FileInfo {
	t.Helper()
	m := map[string]os.FileInfo{}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			rel, _ := filepath.Rel(dir, path)
			m[filepath.ToSlash(rel)] = info
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFilesAreNamedForTheIDAndPrivate(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(newServers())
		cfg.DataDir = dir
		s, _ := start(t, cfg)
		register(t, s, `{"Name":"web","Check":{"CheckID":"web","TTL":"1h"}}`)
		s.UpdateTTL(t.Context(), "web", "passing", "")
		got := files(t, dir)
		if len(got) != 3 {
			t.Fatalf("files %v", got)
		}
		for name, info := range got {
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %o", name, info.Mode().Perm())
			}
			if len(filepath.Base(name)) != 64 {
				t.Errorf("%s is not named for a hash", name)
			}
		}
		var saved struct {
			Token   string
			Service struct{ ID, Service string }
			Source  string
		}
		for name := range got {
			if filepath.Dir(name) == "services" {
				data, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil || json.Unmarshal(data, &saved) != nil || saved.Service.ID != "web" || saved.Source != "remote" {
					t.Errorf("%s: %s, %v", name, data, err)
				}
			}
		}
		s.DeregisterService(t.Context(), "web")
		if got := files(t, dir); len(got) != 0 {
			t.Errorf("left %v", got)
		}
	})
}

func TestUnreadableFilesArePutAside(t *testing.T) {
	dir := t.TempDir()
	hash := strings.Repeat("ab", 32)
	for name, content := range map[string]string{
		"services/" + hash:                     `{"Service":{"ID":"cut`,
		"services/" + strings.Repeat("cd", 32): `{}`,
		"checks/" + hash:                       ``,
		"checks/state/" + hash:                 `[]`,
		"services/configs/" + hash:             `junk`,
		"services/.new-123":                    `half a registration`,
		"services/" + strings.Repeat("ef", 32): `{"Service":{"ID":"good","Service":"good"},"Source":"remote"}`,
		"checks/" + strings.Repeat("ef", 32):   `{"Check":{"CheckID":"orphan","ServiceID":"nope","Type":"ttl"},"ChkType":{"TTL":1000000000},"Source":"remote"}`,
		"checks/" + strings.Repeat("01", 32):   `{"Check":{"CheckID":"script","Type":"script"},"ChkType":{"ScriptArgs":["true"],"Interval":1000000000},"Source":"remote"}`,
		"services/README":                      `not ours`,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		cfg := config(newServers())
		cfg.DataDir = dir
		s, _ := start(t, cfg)
		if got, want := serviceIDs(s), "good"; got != want || len(s.Checks()) != 0 {
			t.Errorf("services %q, want %q; checks %q", got, want, checkStates(s))
		}
		got := files(t, dir)
		for _, name := range []string{
			"services/" + hash + ".corrupt", "services/" + strings.Repeat("cd", 32) + ".corrupt", "checks/" + hash + ".corrupt",
			"checks/state/" + hash + ".corrupt", "services/configs/" + hash + ".corrupt", "services/README",
			"checks/" + strings.Repeat("01", 32),
		} {
			if got[name] == nil {
				t.Errorf("%s is missing", name)
			}
		}
		if got["services/.new-123"] != nil {
			t.Error("a write that was cut short is left")
		}
		register(t, s, `{"Name":"more"}`)
	})
}

func TestDataDirThatIsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(nil)
	cfg.DataDir = path
	if _, err := local.New(cfg); err == nil {
		t.Error("no error")
	}
}
