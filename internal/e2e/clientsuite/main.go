// Command clientsuite runs the tests of the official Go client against Sarn, each by itself: they start a program
// "consul" that they find in the PATH.
//
//	clientsuite -sarn PROGRAM [-only PATTERN] [-parallel N] [-v]
//
// It fails for a test that fails twice and is not known to, and for one that is known to fail and does not.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	// What is tested, and the kit that its tests start agents with.
	_ "github.com/hashicorp/consul/api"
	_ "github.com/hashicorp/consul/api/watch"
	_ "github.com/hashicorp/consul/sdk/testutil"
)

const (
	client = "github.com/hashicorp/consul/api"
	// perTest is how long one test may take.
	perTest = 2 * time.Minute
)

// known says why tests fail.
var known = map[string]string{
	"TestAPI_AgentService":            "the ContentHash of a service is opaque, and another",
	"TestAPI_AgentReload_MultiPort":   "several ports of a service came after 1.21",
	"TestAPI_AgentServices_MultiPort": "several ports of a service came after 1.21",
	"TestAPI_ConfigEntries_HTTPRoute": "a rule without matches is shown with the one that it stands for",
	"TestAPI_ConnectCAConfig_get_set": "the built-in authority keeps no state that only a test sets",
	"TestAPI_DiscoveryChain_Get":      "the CustomizationHash of a chain is opaque, and another",
	"TestAPI_RawV2ExportedServices":   "there are no resources of version 2",
}

func main() {
	log.SetFlags(0)
	sarn := flag.String("sarn", "", "the `program` to test")
	only := flag.String("only", ".", "tests whose names this `pattern` matches")
	parallel := flag.Int("parallel", 2, "tests at once")
	verbose := flag.Bool("v", false, "show the output of tests that fail")
	flag.Parse()
	if err := run(*sarn, *only, max(1, *parallel), *verbose); err != nil {
		log.Fatal(err)
	}
}

func run(sarn, only string, parallel int, verbose bool) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if sarn, err = filepath.Abs(sarn); err != nil {
		return err
	}
	if _, err := os.Stat(sarn); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "clientsuite")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	// The tests read files beside them: from a copy of the client's module, and from the certificates of its repository.
	source, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", client).Output()
	if err != nil {
		return err
	}
	at := filepath.Join(dir, "api")
	if err := os.CopyFS(at, os.DirFS(strings.TrimSpace(string(source)))); err != nil {
		return err
	}
	if err := certificates(filepath.Join(dir, "test")); err != nil {
		return err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	if err := os.Symlink(sarn, filepath.Join(bin, "consul")); err != nil {
		return err
	}
	env := append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "TMPDIR="+dir)

	var all []test
	for _, pkg := range []string{"", "/watch"} {
		program := filepath.Join(dir, "bin", "test"+strings.ReplaceAll(pkg, "/", "-"))
		if out, err := exec.Command("go", "test", "-c", "-o", program, client+pkg).CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		cmd := exec.Command(program, "-test.list", ".")
		cmd.Dir = at + pkg
		out, err := cmd.Output()
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(string(out)) {
			if strings.HasPrefix(name, "Test") && pattern.MatchString(name) {
				all = append(all, test{program: program, dir: at + pkg, name: name})
			}
		}
	}
	work := make(chan *test)
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for t := range work {
				t.run(env)
			}
		})
	}
	for i := range all {
		work <- &all[i]
	}
	close(work)
	workers.Wait()
	// Many of these tests look at the clock: who fails beside others gets another try alone.
	for i := range all {
		if t := &all[i]; t.result == failed && known[t.name] == "" {
			first := t.output
			if t.run(env); t.result == failed {
				t.output = slices.Concat(first, t.output)
			}
		}
	}

	counts, wrong := map[string]int{}, []string(nil)
	for _, t := range all {
		why := known[t.name]
		fmt.Printf("%-4s %5.1fs %s", t.result, t.took.Seconds(), t.name)
		if why != "" {
			fmt.Printf(" (%s)", why)
		}
		fmt.Println()
		counts[t.result]++
		if (t.result == failed) != (why != "") {
			wrong = append(wrong, t.name)
		}
		if verbose && t.result == failed {
			os.Stdout.Write(t.output)
		}
	}
	fmt.Println(len(all), "tests:", counts)
	if len(wrong) > 0 {
		return fmt.Errorf("not as expected: %s", strings.Join(wrong, ", "))
	}
	return nil
}

const (
	passed  = "ok"
	failed  = "FAIL"
	skipped = "skip"
)

type test struct {
	program, dir, name string

	result string
	took   time.Duration
	output []byte
}

// run runs the test in a process of its own: a panic in one ends no other.
func (t *test) run(env []string) {
	ctx, cancel := context.WithTimeout(context.Background(), perTest+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.program, "-test.v", "-test.timeout", perTest.String(), "-test.run", "^"+t.name+"$")
	cmd.Dir, cmd.Env, cmd.WaitDelay = t.dir, env, 5*time.Second
	began := time.Now()
	var err error
	t.output, err = cmd.CombinedOutput()
	t.took = time.Since(began)
	switch {
	case err != nil:
		t.result = failed
	case strings.Contains(string(t.output), "--- SKIP: "+t.name+" "):
		t.result = skipped
	default:
		t.result = passed
	}
}

// certificates makes those that are in the repository of the client, but not in its module.
func certificates(dir string) error {
	for _, a := range []struct {
		folder, authority string
		leaves            []string
	}{
		{"client_certs", "rootca", []string{"server", "client"}},
		{"hostname", "CertAuth", []string{"Alice", "Bob", "Betty"}},
		{"ca_path", "cert1", nil},
		{"ca_path", "cert2", nil},
	} {
		at := filepath.Join(dir, a.folder)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		root := &x509.Certificate{Subject: pkix.Name{CommonName: a.authority}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
		key, err := certificate(filepath.Join(at, a.authority+".crt"), "", root, root, nil)
		if err != nil {
			return err
		}
		for _, name := range a.leaves {
			leaf := &x509.Certificate{
				Subject: pkix.Name{CommonName: name}, DNSNames: []string{"consul.test", "localhost", "server.dc1.consul", strings.ToLower(name)},
				IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			}
			if _, err := certificate(filepath.Join(at, name+".crt"), filepath.Join(at, name+".key"), leaf, root, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// certificate writes a certificate and, to a file that is named, its key. Without a key of the issuer it signs itself.
func certificate(file, keyFile string, c, issuer *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if signer == nil {
		signer = key
	}
	c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	c.NotBefore, c.NotAfter, c.BasicConstraintsValid = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour), true
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	packed, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	if keyFile != "" {
		err = errors.Join(err, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: packed}), 0o600))
	}
	return key, err
}
