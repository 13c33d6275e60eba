//go:build unix

package external_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/plugin"
	"github.com/sarnmesh/sarn/server/caprovider"
	"github.com/sarnmesh/sarn/server/caprovider/external"
)

const clusterID = "11111111-2222-3333-4444-555555555555"

// The test binary is the program too. Its argument says how it behaves.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(plugin.Handshake.MagicCookieKey) == plugin.Handshake.MagicCookieValue:
		plugin.Serve(program{os.Args[1]})
	case os.Getenv("START_PROGRAM") != "": // a server that is killed
		p, err := self("good")
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		kind := external.New(p, nil)
		if _, err := kind.Establish(context.Background(), wanted()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(kind.PID())
		select {}
	default:
		os.Exit(m.Run())
	}
}

// A program is an authority with its root's key in its secret, and with faults.
type program struct{ fault string }

func (p program) Establish(_ context.Context, r *plugin.EstablishRequest) (*plugin.Kept, error) {
	key, err := ca.GenerateKey(rand.Reader, "ec", 256)
	if err != nil {
		return nil, err
	}
	root, err := ca.NewRoot(ca.RootParams{Key: key, Serial: 1, ClusterID: clusterID, Label: "test", Now: time.Now(), TTL: r.RootCertTTL, Random: rand.Reader})
	if err != nil {
		return nil, err
	}
	secret, err := ca.EncodeKey(key)
	kept := &plugin.Kept{Root: root, Secret: secret}
	switch p.fault {
	case "environment":
		kept.State = map[string]string{"env": strings.Join(os.Environ(), "\n")}
	case "huge state":
		kept.State = map[string]string{"x": strings.Repeat("x", 300<<10)}
	case "huge answer":
		kept.State = map[string]string{"x": strings.Repeat("x", 2<<20)}
	case "no root":
		kept.Root = "x"
	case "nothing":
		return nil, nil
	case "error":
		return nil, errors.New("it is " + strings.Repeat("very ", 1000) + "late")
	}
	return kept, err
}

func (p program) Sign(ctx context.Context, r *plugin.SignRequest) (*plugin.Certificate, error) {
	switch p.fault {
	case "panic":
		panic("at the worst moment")
	case "exit":
		os.Exit(3)
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "rubbish":
		return &plugin.Certificate{PEM: "x"}, nil
	}
	template, public, err := r.Template()
	if err != nil {
		return nil, err
	}
	if p.fault == "another name" {
		template.URIs[0].Path += "x"
	}
	if p.fault == "authority" {
		template.IsCA = true
	}
	key, err := ca.ParseKey(r.Kept.Secret)
	if err != nil {
		return nil, err
	}
	root, err := plugin.ParseCertificate(r.Kept.Root)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, public, key)
	return &plugin.Certificate{PEM: plugin.EncodeCertificate(der)}, err
}

func (p program) SignIntermediate(ctx context.Context, r *plugin.SignRequest) (*plugin.Certificate, error) {
	return p.Sign(ctx, r)
}

func (program) CrossSign(context.Context, *plugin.CrossSignRequest) (*plugin.Certificate, error) {
	return nil, errors.New("not here")
}

func (program) Renew(context.Context, *plugin.RenewRequest) (*plugin.Kept, error) {
	return nil, errors.New("not here")
}

func (program) Cleanup(context.Context, *plugin.CleanupRequest) (*plugin.CleanupReply, error) {
	return &plugin.CleanupReply{}, nil
}

// self is the test binary as a program.
func self(fault string) (*external.Program, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return &external.Program{Name: "test", Path: path, SHA256: sum[:], Args: []string{fault}}, nil
}

func wanted() caprovider.Wanted {
	s, _ := ca.ParseSettings("plugin:test", nil)
	return caprovider.Wanted{Config: map[string]any{}, Settings: s, ClusterID: clusterID}
}

func newKind(t *testing.T, fault string) *external.Kind {
	t.Helper()
	p, err := self(fault)
	if err != nil {
		t.Fatal(err)
	}
	kind := external.New(p, nil)
	t.Cleanup(kind.Close)
	return kind
}

func sign(t *testing.T, ctx context.Context, kind *external.Kind, kept *trust.ProviderState) error {
	t.Helper()
	p, err := kind.Open(kept, clusterID)
	if err != nil {
		t.Fatal(err)
	}
	root, err := ca.DescribeRoot(kept.RootCert, "test", clusterID)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.GenerateKey(rand.Reader, "ec", 256)
	if err != nil {
		t.Fatal(err)
	}
	domain := connect.TrustDomain(clusterID)
	text, err := ca.NewCSR(connect.ServiceID(domain, "dc1", "web"), key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ca.ParseCSR(text, domain, "dc1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = ca.SignLeaf(ctx, r, ca.LeafParams{Provider: p, Root: root, Serial: []byte{0x40, 1}, Now: time.Now(), TTL: time.Hour})
	return err
}

func TestProgramThatDiesIsStartedAgain(t *testing.T) {
	kind := newKind(t, "good")
	kept, err := kind.Establish(t.Context(), wanted())
	if err != nil {
		t.Fatal(err)
	}
	first := kind.PID()
	if err := sign(t, t.Context(), kind, kept); err != nil || kind.PID() != first {
		t.Fatalf("signed: %v, by process %d, was %d", err, kind.PID(), first)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := sign(t, t.Context(), kind, kept); err != nil {
		t.Errorf("after it was killed: %v", err)
	}
	if second := kind.PID(); second == first || second == 0 {
		t.Errorf("process %d, was %d", second, first)
	}
	last := kind.PID()
	kind.Close()
	if kind.PID() != 0 || syscall.Kill(last, 0) == nil {
		t.Error("it runs after the end")
	}
}

func TestProgramThatDiesOfEveryCallIsNotStartedForEach(t *testing.T) {
	kind := newKind(t, "exit")
	kept, err := kind.Establish(t.Context(), wanted())
	if err != nil {
		t.Fatal(err)
	}
	begin, pids := time.Now(), map[int]bool{}
	for time.Since(begin) < 2*time.Second {
		if err := sign(t, t.Context(), kind, kept); err == nil {
			t.Fatal("signed")
		}
		pids[kind.PID()] = true
	}
	if len(pids) > 8 {
		t.Errorf("started %d times in two seconds", len(pids))
	}
}

func TestCallsOfAProgramAreBounded(t *testing.T) {
	kind := newKind(t, "hang")
	kept, err := kind.Establish(t.Context(), wanted())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := sign(t, ctx, kind, kept); err == nil || time.Since(begin) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}

func TestHostileProgram(t *testing.T) {
	t.Run("what it establishes", func(t *testing.T) {
		for fault, want := range map[string]string{
			"huge state": "wants to keep too much", "huge answer": "larger than max", "no root": "there is no certificate in PEM",
			"nothing": "returned nothing", "error": `the CA plugin "test": it is very very`,
		} {
			_, err := newKind(t, fault).Establish(t.Context(), wanted())
			if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 1000 {
				t.Errorf("%s: got %v, want %q", fault, err, want)
			}
		}
	})
	t.Run("what it signs", func(t *testing.T) {
		for fault, want := range map[string]string{
			"panic": "the provider panicked", "rubbish": "there is no certificate in PEM",
			"another name": "signed something else", "authority": "signed something else",
		} {
			kind := newKind(t, fault)
			kept, err := kind.Establish(t.Context(), wanted())
			if err != nil {
				t.Fatal(err)
			}
			if err := sign(t, t.Context(), kind, kept); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", fault, err, want)
			}
		}
	})
}

func TestProgramSeesNoSecretsOfTheEnvironment(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", "the-token-of-the-server")
	kept, err := newKind(t, "environment").Establish(t.Context(), wanted())
	if err != nil {
		t.Fatal(err)
	}
	if env := kept.State["env"]; strings.Contains(env, "the-token-of-the-server") || !strings.Contains(env, "PATH=") {
		t.Errorf("its environment:\n%s", env)
	}
}

func TestProgramIsChecked(t *testing.T) {
	p, err := self("good")
	if err != nil {
		t.Fatal(err)
	}
	changed := *p
	changed.SHA256 = make([]byte, sha256.Size)
	missing := *p
	missing.Path = filepath.Join(t.TempDir(), "none")
	open := *p
	open.Path = filepath.Join(t.TempDir(), "open")
	text, err := os.ReadFile(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(open.Path, text, 0o755), os.Chmod(open.Path, 0o777)); err != nil {
		t.Fatal(err)
	}
	script := *p
	script.Path = filepath.Join(t.TempDir(), "script")
	shell := "#!/bin/sh\nexit 0\n"
	sum := sha256.Sum256([]byte(shell))
	script.SHA256 = sum[:]
	if err := os.WriteFile(script.Path, []byte(shell), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		program external.Program
		want    string
	}{
		"another checksum":       {changed, "checksum"},
		"not there":              {missing, "no such file"},
		"anybody may change it":  {open, "may be changed by others"},
		"not a program of these": {script, "start the CA plugin"},
	} {
		kind := external.New(&tt.program, nil)
		_, err := kind.Establish(t.Context(), wanted())
		if err == nil || !strings.Contains(err.Error(), tt.want) || kind.PID() != 0 {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
		kind.Close()
	}
}

// A server that is killed leaves no program behind.
func TestProgramEndsWithItsServer(t *testing.T) {
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), "START_PROGRAM=1")
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 32)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatalf("%s", line[:n])
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the program does not run: %v", err)
	}
	_ = server.Process.Kill()
	_ = server.Wait()
	for range 600 { // half a minute
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("process %d is left", pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

func TestSplit(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	block := func(pairs ...any) map[string]any {
		b := map[string]any{"Path": "/opt/ca", "SHA256": sum}
		for i := 0; i < len(pairs); i += 2 {
			b[pairs[i].(string)] = pairs[i+1]
		}
		return map[string]any{"Plugin": b, "LeafCertTTL": "2h"}
	}
	tests := []struct {
		name, provider string
		settings       map[string]any
		want, err      string
	}{
		{"named by the provider", "plugin:hsm", block(), "hsm", ""},
		{"named by itself", "consul", block("Name", "hsm"), "hsm", ""},
		{"none", "consul", map[string]any{"LeafCertTTL": "2h"}, "", ""},
		{"a provider without one", "plugin:hsm", map[string]any{"LeafCertTTL": "2h"}, "", "needs ca_config { plugin"},
		{"two names", "plugin:hsm", block("Name", "other"), "", `name is "other"`},
		{"no name", "consul", block(), "", "must be of letters"},
		{"a name that is a path", "plugin:../x", block(), "", "must be of letters"},
		{"a relative path", "plugin:hsm", block("Path", "ca"), "", "must be absolute"},
		{"no checksum", "plugin:hsm", block("SHA256", ""), "", "sha256 must be"},
		{"half a checksum", "plugin:hsm", block("SHA256", sum[:32]), "", "sha256 must be"},
		{"arguments of another kind", "plugin:hsm", block("Args", map[string]any{}), "", "expected a list of strings"},
	}
	for _, tt := range tests {
		p, rest, err := external.Split(tt.provider, tt.settings)
		got := ""
		if p != nil {
			got = p.Name
		}
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: program %q, %v; want %q, %q", tt.name, got, err, tt.want, tt.err)
		}
		if len(rest) != 1 || rest["LeafCertTTL"] != "2h" {
			t.Errorf("%s: left %v", tt.name, rest)
		}
	}
}
