// Fileca is an example of a CA plugin for Sarn: an authority whose root is a pair of files on the disks of all servers,
// and whose intermediate is replicated by them.
//
// The folder with root.pem and root.key is the setting Folder. Where there is none a root is made, on the first server that
// leads; copy it to the others. To go over to another root, name another folder.
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/plugin"
)

func main() { plugin.Serve(authority{}) }

// An authority needs no memory: every call brings what it keeps.
type authority struct{}

func (authority) Establish(_ context.Context, r *plugin.EstablishRequest) (*plugin.Kept, error) {
	root, key, err := loadOrMake(&r.Settings)
	if err != nil {
		return nil, err
	}
	kept := &plugin.Kept{Root: plugin.EncodeCertificate(root.Raw), CrossSigns: true, State: map[string]string{"Folder": folder(&r.Settings)}}
	if r.Current != nil && r.Current.Root == kept.Root {
		if r.New {
			return nil, errors.New("another root needs another Folder")
		}
		return r.Current, nil
	}
	return kept, makeIntermediate(&r.Settings, kept, root, key)
}

func (authority) Sign(_ context.Context, r *plugin.SignRequest) (*plugin.Certificate, error) {
	if len(r.Kept.Intermediates) == 0 {
		return nil, errors.New("there is no intermediate")
	}
	issuer, err := plugin.ParseCertificate(r.Kept.Intermediates[0])
	if err != nil {
		return nil, err
	}
	key, err := parseKey([]byte(r.Kept.Secret))
	if err != nil {
		return nil, err
	}
	return sign(r, issuer, key)
}

func (authority) SignIntermediate(_ context.Context, r *plugin.SignRequest) (*plugin.Certificate, error) {
	root, key, err := load(folder(&r.Settings))
	if err != nil {
		return nil, err
	}
	return sign(r, root, key)
}

func sign(r *plugin.SignRequest, issuer *x509.Certificate, key crypto.Signer) (*plugin.Certificate, error) {
	template, public, err := r.Template()
	if err != nil {
		return nil, err
	}
	return create(template, issuer, public, key)
}

func create(template, issuer *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*plugin.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		return nil, err
	}
	return &plugin.Certificate{PEM: plugin.EncodeCertificate(der)}, nil
}

func (authority) CrossSign(_ context.Context, r *plugin.CrossSignRequest) (*plugin.Certificate, error) {
	root, key, err := load(folder(&r.Settings))
	if err != nil {
		return nil, err
	}
	template, public, err := r.Template()
	if err != nil {
		return nil, err
	}
	return create(template, root, public, key)
}

func (authority) Renew(_ context.Context, r *plugin.RenewRequest) (*plugin.Kept, error) {
	root, key, err := load(folder(&r.Settings))
	if err != nil {
		return nil, err
	}
	kept := r.Kept
	return &kept, makeIntermediate(&r.Settings, &kept, root, key)
}

// Cleanup leaves the files: they are the operator's.
func (authority) Cleanup(context.Context, *plugin.CleanupRequest) (*plugin.CleanupReply, error) {
	return &plugin.CleanupReply{}, nil
}

func folder(s *plugin.Settings) string {
	for key, value := range s.Config {
		if text, ok := value.(string); ok && strings.EqualFold(key, "Folder") {
			return text
		}
	}
	return ""
}

// load reads the root.
func load(folder string) (*x509.Certificate, crypto.Signer, error) {
	if !filepath.IsAbs(folder) {
		return nil, nil, errors.New("Folder must be an absolute path")
	}
	text, err := os.ReadFile(filepath.Join(folder, "root.pem"))
	if err != nil {
		return nil, nil, err
	}
	root, err := plugin.ParseCertificate(string(text))
	if err != nil {
		return nil, nil, err
	}
	if text, err = os.ReadFile(filepath.Join(folder, "root.key")); err != nil {
		return nil, nil, err
	}
	key, err := parseKey(text)
	return root, key, err
}

func loadOrMake(s *plugin.Settings) (*x509.Certificate, crypto.Signer, error) {
	path := folder(s)
	root, key, err := load(path)
	if !errors.Is(err, os.ErrNotExist) {
		return root, key, err
	}
	if key, err = generate(s); err != nil {
		return nil, nil, err
	}
	template := authorityTemplate(s, "file root", s.RootCertTTL)
	made, err := create(template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	err = errors.Join(
		os.MkdirAll(path, 0o700),
		os.WriteFile(filepath.Join(path, "root.key"), text, 0o600),
		os.WriteFile(filepath.Join(path, "root.pem"), []byte(made.PEM), 0o600),
	)
	if err != nil {
		return nil, nil, err
	}
	return load(path)
}

// makeIntermediate makes what signs leaves. Its key is the secret that the servers keep.
func makeIntermediate(s *plugin.Settings, kept *plugin.Kept, root *x509.Certificate, rootKey crypto.Signer) error {
	key, err := generate(s)
	if err != nil {
		return err
	}
	template := authorityTemplate(s, "file intermediate", s.IntermediateCertTTL)
	template.MaxPathLenZero = true
	if template.NotAfter.After(root.NotAfter) {
		template.NotAfter = root.NotAfter
	}
	cert, err := create(template, root, key.Public(), rootKey)
	if err != nil {
		return err
	}
	text, err := encodeKey(key)
	if err != nil {
		return err
	}
	kept.Intermediates, kept.Secret = []string{cert.PEM}, string(text)
	return nil
}

func authorityTemplate(s *plugin.Settings, name string, life time.Duration) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: fmt.Sprintf("%s %x", name, serial.Bytes()[:4])},
		URIs:      []*url.URL{{Scheme: "spiffe", Host: s.TrustDomain}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life), BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
}

func generate(s *plugin.Settings) (crypto.Signer, error) {
	if s.PrivateKeyType == "rsa" {
		return rsa.GenerateKey(rand.Reader, s.PrivateKeyBits)
	}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		if curve.Params().BitSize == s.PrivateKeyBits {
			return ecdsa.GenerateKey(curve, rand.Reader)
		}
	}
	return nil, fmt.Errorf("no keys of type %s with %d bits", s.PrivateKeyType, s.PrivateKeyBits)
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("there is no private key where one should be")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the private key cannot be read")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key cannot sign")
	}
	return signer, nil
}
