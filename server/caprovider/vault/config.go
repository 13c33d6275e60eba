package vault

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/server/caprovider"
)

// settings are the provider's own part of its configuration (spec/connect.md section 2.2).
type settings struct {
	address          *url.URL
	namespace        string
	token            string
	auth             *authMethod // nil with a token
	root, between    mount
	caFile, caPath   string
	certFile, keyKey string // client certificate
	serverName       string
	skipVerify       bool
}

// A mount is where a PKI engine is. Its path ends in no slash.
type mount struct{ namespace, path string }

type authMethod struct {
	kind  string
	mount string
	param *caprovider.Reader
}

// defaultAddress is where Vault is unless the settings tell.
const defaultAddress = "https://127.0.0.1:8200"

func parse(config map[string]any) (*settings, error) {
	r := caprovider.Read(config)
	s := &settings{
		namespace: r.Text("Namespace"), token: r.Text("Token"),
		caFile: r.Text("CAFile"), caPath: r.Text("CAPath"), certFile: r.Text("CertFile"), keyKey: r.Text("KeyFile"),
		serverName: r.Text("TLSServerName"), skipVerify: r.Bool("TLSSkipVerify"),
	}
	s.root = mount{first(r.Text("RootPKINamespace"), s.namespace), strings.Trim(r.Text("RootPKIPath"), "/")}
	s.between = mount{first(r.Text("IntermediatePKINamespace"), s.namespace), strings.Trim(r.Text("IntermediatePKIPath"), "/")}
	method := r.Map("AuthMethod")
	if err := r.Err(); err != nil {
		return nil, err
	}
	var err error
	if s.address, err = url.Parse(first(r.Text("Address"), defaultAddress)); err != nil {
		return nil, errors.New("the address of Vault is not a URL")
	}
	switch {
	case s.address.Scheme != "http" && s.address.Scheme != "https" || s.address.Host == "" || s.address.User != nil:
		return nil, errors.New("the address of Vault must be of the form https://HOST:PORT")
	case s.token == "" && method == nil:
		return nil, errors.New("must provide a Vault token or configure a Vault auth method")
	case s.token != "" && method != nil:
		return nil, errors.New("only one of Vault token or Vault auth method can be provided, but not both")
	case s.root.path == "":
		return nil, errors.New("must provide a valid path to a root PKI backend")
	case s.between.path == "":
		return nil, errors.New("must provide a valid path for the intermediate PKI backend")
	case s.root == s.between:
		return nil, errors.New("the root and intermediate PKI backends must have different paths")
	case (s.certFile == "") != (s.keyKey == ""):
		return nil, errors.New("CertFile and KeyFile must be given together")
	}
	for _, m := range []mount{s.root, s.between} {
		if !pathIsPlain(m.path) {
			return nil, fmt.Errorf("%q is not the path of a PKI backend", m.path)
		}
	}
	if method != nil {
		if s.auth, err = parseAuth(method); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func parseAuth(method map[string]any) (*authMethod, error) {
	r := caprovider.Read(method)
	m := &authMethod{kind: strings.ToLower(r.Text("Type")), mount: strings.Trim(r.Text("MountPath"), "/")}
	m.param = caprovider.Read(r.Map("Params"))
	if err := r.Err(); err != nil {
		return nil, err
	}
	if m.mount == "" {
		m.mount = m.kind
	}
	switch {
	case m.kind == "":
		return nil, errors.New("the Vault auth method has no type")
	case slices.Contains(notSupported, m.kind):
		return nil, fmt.Errorf("the Vault auth method %q is not supported: log in by Vault Agent and give its token, or use one of %s", m.kind, strings.Join(methodNames(), ", "))
	case methods[m.kind] == nil:
		return nil, fmt.Errorf("auth method %q is not supported", m.kind)
	case !pathIsPlain(m.mount):
		return nil, fmt.Errorf("%q is not the path of an auth method", m.mount)
	}
	return m, nil
}

// pathIsPlain tells whether a path can be part of a URL as it is.
func pathIsPlain(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "?#%\\ ") || strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r > '~' }) {
			return false
		}
	}
	return true
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// machineKeys are settings that name files of the server.
var machineKeys = []string{"CAFile", "CAPath", "CertFile", "KeyFile"}

// trustKeys are settings that say to whom it is spoken, and by what right.
var trustKeys = append([]string{"Address", "Namespace", "TLSServerName", "TLSSkipVerify", "AuthMethod"}, machineKeys...)

// MayBeSet returns an error if a configuration that came over the network makes the server use what is only the machine's:
// its files, or an identity it has in a cloud or an orchestrator. That is for the server's own configuration (own) to say:
// else whoever may configure the authority could have the machine's secrets sent to an address of his choice. What own
// says may be repeated.
func MayBeSet(config, own map[string]any) error {
	r, mine := caprovider.Read(config), caprovider.Read(own)
	uses := ""
	for _, key := range machineKeys {
		if r.Text(key) != "" {
			uses = key
		}
	}
	if method := r.Map("AuthMethod"); method != nil {
		m, err := parseAuth(method)
		if err != nil {
			return err
		}
		if methods[m.kind].machine(m.param) {
			uses = "AuthMethod of type " + m.kind
		}
	}
	if uses == "" || r.Err() != nil {
		return r.Err()
	}
	for _, key := range trustKeys {
		if fmt.Sprint(r.Value(key)) != fmt.Sprint(mine.Value(key)) {
			return fmt.Errorf("%s uses what belongs to the server's machine, and can be set in the servers' own configuration only (connect.ca_config)", uses)
		}
	}
	return nil
}
