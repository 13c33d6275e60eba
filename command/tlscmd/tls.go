// Package tlscmd holds the commands that make certificates for agents: an authority in two files, and what it signs.
package tlscmd

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/internal/agentcert"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{
		{Path: "tls", Synopsis: "Make certificates for agents"},
		{Path: "tls ca", Synopsis: "Make an authority"},
		{
			Path: "tls ca create", Synopsis: "Make an authority for the certificates of agents", Setup: createCA,
			Help: "Makes a certificate authority and saves its certificate and its key in the working folder. Give the certificate to " +
				"every agent. Keep the key where no agent runs: who has it can make a certificate for a server.",
		},
		{Path: "tls cert", Synopsis: "Make certificates"},
		{
			Path: "tls cert create", Synopsis: "Make a certificate for a server, a client or the command line", Setup: createCert,
			Help: "Signs a new certificate with an authority made by tls ca create, and saves it and its key in the working folder under the " +
				"next free number. One of -server, -client and -cli says what it is for.",
		},
	}
}

// Modes of files.
const (
	certMode fs.FileMode = 0o644
	keyMode  fs.FileMode = 0o600
)

const day = 24 * time.Hour

// label is what may stand in the names of files and hosts.
var label = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)

// checkLabels refuses values that are not fit for names, by the flag they come from.
func checkLabels(flags map[string]string) error {
	for name, value := range flags {
		if value != "" && (!label.MatchString(value) || strings.Contains(value, "..")) {
			return verb.Errorf("Invalid value %q for -%s: it becomes part of host names", value, name)
		}
	}
	return nil
}

// positive refuses a validity that has passed when it begins.
func positive(days int) error {
	if days < 1 || days > 36500 {
		return verb.Errorf("Invalid value %d for -days: must be from 1 to 36500", days)
	}
	return nil
}

// save writes a new file; one that is there stays as it is.
func save(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return verb.Errorf("%s already exists.", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// savePair writes a certificate and its key, both or none.
func savePair(c *verb.Call, certFile, keyFile string, cert, key []byte) error {
	if err := save(keyFile, key, keyMode); err != nil {
		return err
	}
	if err := save(certFile, cert, certMode); err != nil {
		os.Remove(keyFile)
		return err
	}
	c.Printf("==> Saved %s\n==> Saved %s\n", certFile, keyFile)
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// caFiles are where the authority of a domain is kept.
func caFiles(domain string) (cert, key string) {
	return domain + "-agent-ca.pem", domain + "-agent-ca-key.pem"
}

func createCA(f *flag.FlagSet) func(*verb.Call) error {
	domain := f.String("domain", "consul", "`domain` of DNS, also part of the names of the files")
	days := f.Int("days", 1825, "`number` of days the certificate is valid")
	name := f.String("common-name", "", "common `name` of the certificate; default says what it is, with its serial number")
	cluster := f.String("cluster-id", "", "`ID` of the cluster, for a SPIFFE name in the certificate")
	constrain := f.Bool("name-constraint", false, "let the authority sign for the domain and localhost only; who uses its certificates must check that")
	more := verb.Strings(f, "additional-name-constraint", "`domain` to sign for too; repeatable, with -name-constraint")
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		certFile, keyFile := caFiles(*domain)
		for _, err := range []error{checkLabels(map[string]string{"domain": *domain, "cluster-id": *cluster}), positive(*days)} {
			if err != nil {
				return err
			}
		}
		switch {
		case *domain == "":
			return verb.Errorf("Please provide the domain")
		case len(*more) > 0 && !*constrain:
			return verb.Errorf("-additional-name-constraint requires -name-constraint")
		case exists(certFile):
			return verb.Errorf("%s already exists.", certFile)
		case exists(keyFile):
			return verb.Errorf("%s already exists.", keyFile)
		}
		spec := agentcert.Authority{Name: *name, Validity: time.Duration(*days) * day}
		if *constrain {
			spec.Only = append(append([]string{}, *more...), *domain, "localhost")
		}
		if *cluster != "" {
			spec.URI = "spiffe://" + *cluster + "." + *domain
		}
		cert, key, err := spec.Make(time.Now())
		if err != nil {
			return verb.Errorf("Error making the authority: %w", err)
		}
		return savePair(c, certFile, keyFile, cert, key)
	}
}

const serverWarning = `==> WARNING: whoever has the key of this certificate can become a server, and see and change
    everything in the cluster, all tokens and the keys of the mesh among it. Give it to
    machines that run servers only, and keep it as safe as the key of the authority.`

func createCert(f *flag.FlagSet) func(*verb.Call) error {
	server := f.Bool("server", false, "make the certificate of a server")
	client := f.Bool("client", false, "make the certificate of a client agent")
	cli := f.Bool("cli", false, "make a certificate for the command line")
	caFile := f.String("ca", "#DOMAIN#-agent-ca.pem", "`file` with the certificate of the authority; #DOMAIN# is the domain")
	caKey := f.String("key", "#DOMAIN#-agent-ca-key.pem", "`file` with the key of the authority; #DOMAIN# is the domain")
	dc := f.String("dc", "dc1", "`name` of the datacenter")
	domain := f.String("domain", "consul", "`domain` of DNS")
	days := f.Int("days", 365, "`number` of days the certificate is valid")
	node := f.String("node", "", "`name` of the server's node, to be valid for NODE.server.DATACENTER.DOMAIN too; with -server")
	hosts := verb.Strings(f, "additional-dnsname", "host `name` to be valid for too; repeatable")
	addrs := verb.Strings(f, "additional-ipaddress", "IP `address` to be valid for too; repeatable")
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		kind := ""
		switch {
		case count(*server, *client, *cli) != 1:
			return verb.Errorf("Please provide either -server, -client, or -cli")
		case *server:
			kind = "server"
		case *client:
			kind = "client"
		default:
			kind = "cli"
		}
		switch {
		case *node != "" && kind != "server":
			return verb.Errorf("-node requires -server")
		case *caFile == "":
			return verb.Errorf("Please provide the ca")
		case *caKey == "":
			return verb.Errorf("Please provide the key")
		case *dc == "" || *domain == "":
			return verb.Errorf("Please provide the datacenter and the domain")
		}
		for _, err := range []error{checkLabels(map[string]string{"dc": *dc, "domain": *domain, "node": *node}), positive(*days)} {
			if err != nil {
				return err
			}
		}
		certPath, keyPath := strings.ReplaceAll(*caFile, "#DOMAIN#", *domain), strings.ReplaceAll(*caKey, "#DOMAIN#", *domain)
		caPEM, err := os.ReadFile(certPath)
		if err != nil {
			return verb.Errorf("Error reading CA: %w", err)
		}
		keyPEM, err := os.ReadFile(keyPath)
		if err != nil {
			return verb.Errorf("Error reading CA key: %w", err)
		}
		spec := agentcert.Leaf{Name: fmt.Sprintf("%s.%s.%s", kind, *dc, *domain), Validity: time.Duration(*days) * day, Peer: kind != "cli"}
		spec.Hosts = []string{spec.Name, "localhost"}
		if *node != "" {
			spec.Hosts = append(spec.Hosts, *node+"."+spec.Name)
		}
		spec.Hosts = append(spec.Hosts, *hosts...)
		if spec.Peer {
			spec.Addrs = append(spec.Addrs, "127.0.0.1")
		}
		spec.Addrs = append(spec.Addrs, *addrs...)
		cert, key, err := spec.Make(time.Now(), caPEM, keyPEM)
		if err != nil {
			return verb.Errorf("Error making the certificate: %w", err)
		}
		if kind == "server" {
			c.Warnf("%s", serverWarning)
		}
		c.Printf("==> Using %s and %s\n", certPath, keyPath)
		for n := 0; ; n++ {
			base := fmt.Sprintf("%s-%s-%s-%d", *dc, kind, *domain, n)
			if certFile, keyFile := base+".pem", base+"-key.pem"; !exists(certFile) && !exists(keyFile) {
				return savePair(c, certFile, keyFile, cert, key)
			}
		}
	}
}

func count(flags ...bool) (n int) {
	for _, f := range flags {
		if f {
			n++
		}
	}
	return n
}
