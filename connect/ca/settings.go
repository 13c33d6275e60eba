package ca

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// Names of providers.
const (
	BuiltIn = "consul"
	Vault   = "vault"
	AWSPCA  = "aws-pca"
)

// Types of private keys.
const (
	KeyEC  = "ec"
	KeyRSA = "rsa"
)

// Settings are the provider settings every provider shares, decoded from Configuration.Config and checked.
type Settings struct {
	LeafCertTTL         time.Duration // default 72h
	IntermediateCertTTL time.Duration // default 8760h
	RootCertTTL         time.Duration // default 87600h
	PrivateKeyType      string        // KeyEC (default) or KeyRSA
	PrivateKeyBits      int           // default 256
	KeyTypeGiven        bool          // one of the two above was given
	CSRMaxPerSecond     float64       // default 50; 0 means no limit
	CSRMaxConcurrent    int           // used when CSRMaxPerSecond is 0; 0 means no limit
	SkipValidate        bool
	// RotationPeriod is the age at which a generated root is replaced; 0, the default, leaves it until it is about to
	// expire. RotationConfirmTimeout is how long a new root waits for proxies that do not confirm that they trust it
	// before it signs all the same; default 10m. Both are Sarn's own.
	RotationPeriod         time.Duration
	RotationConfirmTimeout time.Duration
	// Of the built-in provider; PEM, empty means that they are generated.
	PrivateKey string
	RootCert   string
}

// DefaultConfig is what a new cluster's Configuration.Config has where the operator gives nothing.
func DefaultConfig() map[string]any {
	return map[string]any{"LeafCertTTL": "72h", "IntermediateCertTTL": "8760h", "RootCertTTL": "87600h"}
}

const (
	minLeafTTL         = time.Hour
	maxLeafTTL         = 8760 * time.Hour
	minIntermediateTTL = 3 * time.Hour
	minConfirmTimeout  = time.Second
	maxConfirmTimeout  = 24 * time.Hour // well before cross-signed certificates expire
)

// ParseSettings decodes and checks the settings of a provider. Letter case of keys does not matter; keys it does not
// know are ignored. The errors are those of spec/connect.md section 2.2.
func ParseSettings(provider string, config map[string]any) (Settings, error) {
	s := Settings{
		LeafCertTTL: 72 * time.Hour, IntermediateCertTTL: 8760 * time.Hour, RootCertTTL: 87600 * time.Hour,
		PrivateKeyType: KeyEC, PrivateKeyBits: 256, CSRMaxPerSecond: 50, RotationConfirmTimeout: 10 * time.Minute,
	}
	var problems []error
	for key, value := range config {
		if value == nil {
			continue
		}
		if catalog.TooDeep(value) {
			problems = append(problems, fmt.Errorf("'%s' is nested too deeply", key))
			continue
		}
		if name, err := s.set(key, value); err != nil {
			problems = append(problems, fmt.Errorf("'%s' %w", name, err))
		}
	}
	if problems != nil {
		return s, fmt.Errorf("error decoding config: %w", errors.Join(problems...))
	}
	return s, s.validate(provider, config)
}

// set decodes one key; it returns the key's proper name.
func (s *Settings) set(key string, value any) (name string, err error) {
	is := func(want string) bool {
		name = want
		return strings.EqualFold(key, want)
	}
	switch {
	case is("LeafCertTTL"):
		return name, setDuration(&s.LeafCertTTL, value)
	case is("IntermediateCertTTL"):
		return name, setDuration(&s.IntermediateCertTTL, value)
	case is("RootCertTTL"):
		return name, setDuration(&s.RootCertTTL, value)
	case is("PrivateKeyType"):
		s.KeyTypeGiven = true
		return name, setString(&s.PrivateKeyType, value)
	case is("PrivateKeyBits"):
		s.KeyTypeGiven = true
		var f float64
		err := setNumber(&f, value)
		s.PrivateKeyBits = int(f)
		return name, err
	case is("CSRMaxPerSecond"):
		return name, setNumber(&s.CSRMaxPerSecond, value)
	case is("CSRMaxConcurrent"):
		var f float64
		err := setNumber(&f, value)
		s.CSRMaxConcurrent = int(f)
		return name, err
	case is("SkipValidate"):
		switch v := value.(type) {
		case bool:
			s.SkipValidate = v
			return name, nil
		case string:
			s.SkipValidate, err = strconv.ParseBool(v)
			return name, err
		}
		return name, fmt.Errorf("expected type 'bool', got %T", value)
	case is("RotationPeriod"):
		return name, setDuration(&s.RotationPeriod, value)
	case is("RotationConfirmTimeout"):
		return name, setDuration(&s.RotationConfirmTimeout, value)
	case is("PrivateKey"):
		return name, setString(&s.PrivateKey, value)
	case is("RootCert"):
		return name, setString(&s.RootCert, value)
	}
	return key, nil
}

func setDuration(d *time.Duration, value any) error {
	if text, ok := value.(string); ok {
		v, err := time.ParseDuration(text)
		if err != nil {
			return err
		}
		*d = v
		return nil
	}
	var f float64
	if err := setNumber(&f, value); err != nil {
		return err
	}
	*d = time.Duration(f)
	return nil
}

func setNumber(f *float64, value any) error {
	switch v := reflect.ValueOf(value); {
	case v.CanInt():
		*f = float64(v.Int())
	case v.CanUint():
		*f = float64(v.Uint())
	case v.CanFloat():
		*f = v.Float()
	case v.Kind() == reflect.String:
		parsed, err := strconv.ParseFloat(v.String(), 64)
		if err != nil {
			return fmt.Errorf("cannot parse %q as a number", v.String())
		}
		*f = parsed
	default:
		return fmt.Errorf("expected a number, got %T", value)
	}
	return nil
}

func setString(s *string, value any) error {
	switch v := value.(type) {
	case string:
		*s = v
	case []byte:
		*s = string(v)
	default:
		return fmt.Errorf("expected type 'string', got %T", value)
	}
	return nil
}

func (s *Settings) validate(provider string, config map[string]any) error {
	switch {
	case s.LeafCertTTL < minLeafTTL:
		return fmt.Errorf("leaf cert TTL must be greater or equal than %s", minLeafTTL)
	case s.LeafCertTTL >= maxLeafTTL:
		return fmt.Errorf("leaf cert TTL must be less than %s", maxLeafTTL)
	case s.IntermediateCertTTL < minIntermediateTTL:
		return errors.New("Intermediate Cert TTL must be greater or equal than 3h")
	case s.IntermediateCertTTL < 3*s.LeafCertTTL:
		return fmt.Errorf("Intermediate Cert TTL must be greater or equal than 3 * LeafCertTTL (>=%s).", 3*s.LeafCertTTL)
	case s.RootCertTTL <= s.IntermediateCertTTL:
		return fmt.Errorf("root cert TTL is set and is not greater than intermediate cert ttl. root cert ttl: %s, intermediate cert ttl: %s", s.RootCertTTL, s.IntermediateCertTTL)
	case s.RotationPeriod != 0 && s.RotationPeriod < s.LeafCertTTL:
		return fmt.Errorf("rotation period must be greater or equal than the leaf cert TTL (>=%s), or 0 for none", s.LeafCertTTL)
	case s.RotationPeriod != 0 && s.RotationPeriod >= s.RootCertTTL:
		return fmt.Errorf("rotation period must be less than the root cert TTL (<%s)", s.RootCertTTL)
	case s.RotationPeriod != 0 && s.PrivateKey != "":
		return errors.New("rotation period is for generated keys, not for one that is given")
	case s.RotationConfirmTimeout < minConfirmTimeout || s.RotationConfirmTimeout > maxConfirmTimeout:
		return fmt.Errorf("rotation confirm timeout must be between %s and %s", minConfirmTimeout, maxConfirmTimeout)
	}
	switch s.PrivateKeyType {
	case KeyEC:
		switch s.PrivateKeyBits {
		case 224, 256, 384, 521:
		default:
			return errors.New("EC key length must be one of (224, 256, 384, 521) bits")
		}
	case KeyRSA:
		if s.PrivateKeyBits != 2048 && s.PrivateKeyBits != 4096 {
			return errors.New("RSA key length must be 2048 or 4096 bits")
		}
	default:
		return errors.New("private key type must be either 'ec' or 'rsa'")
	}
	text := func(key string) string {
		for k, v := range config {
			if t, ok := v.(string); ok && strings.EqualFold(k, key) {
				return t
			}
		}
		return ""
	}
	switch provider {
	case Vault:
		_, hasMethod := config["AuthMethod"]
		if text("Token") == "" && !hasMethod {
			return errors.New("must provide a Vault token or configure a Vault auth method")
		}
		if text("IntermediatePKIPath") == "" {
			return errors.New("must provide a valid path for the intermediate PKI backend")
		}
	case AWSPCA:
		if s.LeafCertTTL < 24*time.Hour {
			return fmt.Errorf("AWS PCA doesn't support certificates that are valid for less than 24 hours, LeafTTL of %s configured", s.LeafCertTTL)
		}
	}
	return nil
}

// configKeys are the names of all settings, for NormalizeConfig and Redact.
var configKeys = []string{
	"LeafCertTTL", "IntermediateCertTTL", "RootCertTTL", "PrivateKeyType", "PrivateKeyBits", "CSRMaxPerSecond",
	"CSRMaxConcurrent", "SkipValidate", "PrivateKey", "RootCert", "RotationPeriod", "RotationConfirmTimeout",
	"Address", "Token", "RootPKIPath", "RootPKINamespace", "IntermediatePKIPath", "IntermediatePKINamespace", "Namespace",
	"CAFile", "CAPath", "CertFile", "KeyFile", "TLSServerName", "TLSSkipVerify", "AuthMethod",
	"ExistingARN", "DeleteOnExit", "ClusterID", "Plugin",
}

// blockKeys are the names within blocks of settings.
var blockKeys = map[string][]string{
	"AuthMethod": {"Type", "MountPath", "Params"},
	"Plugin":     {"Name", "Path", "SHA256", "Args"},
}

// NormalizeConfig returns settings of the agent's own configuration with the proper names of their keys: there,
// snake_case is understood too.
func NormalizeConfig(config map[string]any) map[string]any {
	out := normalize(config, configKeys)
	for block, names := range blockKeys {
		value := out[block]
		if list, ok := value.([]any); ok && len(list) == 1 { // how JSON may write a block
			value = list[0]
		}
		if inner, ok := value.(map[string]any); ok {
			out[block] = normalize(inner, names)
		}
	}
	return out
}

func normalize(config map[string]any, names []string) map[string]any {
	out := make(map[string]any, len(config))
	for key, value := range config {
		plain := strings.ReplaceAll(key, "_", "")
		for _, name := range names {
			if strings.EqualFold(plain, name) {
				key = name
			}
		}
		out[key] = value
	}
	return out
}

// secretKeys are settings that no answer contains. Those of providers that are programs may have any name: one that has
// a secretWord in it is taken for a secret.
var (
	secretKeys  = []string{"privatekey", "token", "authmethod"}
	secretWords = []string{"secret", "password", "passphrase", "credential", "token", "apikey", "accesskey"}
)

// Redact returns the settings without secrets, those within blocks too.
func Redact(config map[string]any) map[string]any {
	out := make(map[string]any, len(config))
	for key, value := range config {
		plain := strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(key))
		if slices.Contains(secretKeys, plain) || slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(plain, w) }) {
			continue
		}
		out[key] = redactValue(value)
	}
	return out
}

func redactValue(value any) any {
	switch v := value.(type) {
	case map[string]any:
		return Redact(v)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = redactValue(e)
		}
		return out
	case string:
		if strings.Contains(v, "PRIVATE KEY-----") {
			return "(a private key)"
		}
	}
	return value
}
