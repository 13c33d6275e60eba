package authmethod

import (
	"context"

	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/server/authmethod/awsiam"
	"github.com/sarnmesh/sarn/server/authmethod/jwt"
	"github.com/sarnmesh/sarn/server/authmethod/kubernetes"
)

// An Identity is who a proof says somebody is. What was proved is only ever a value: selectors are compiled from the
// text of a binding rule alone, and compared with it.
type Identity struct {
	// Variables are what ${…} in the names of binding rules stands for, such as "value.team". They are as they were
	// proved; who uses one in a name checks the name.
	Variables map[string]string
	fields    matcher
}

type matcher interface {
	match(selector string) (bool, error)
}

// fields are what selectors see: T is a struct, and its JSON names are theirs.
type fields[T any] struct{ of T }

func (f fields[T]) match(selector string) (bool, error) {
	compiled, err := filter.Compile[*T](selector)
	if err != nil {
		return false, err
	}
	return compiled.Match(&f.of), nil
}

// NewIdentity returns an identity whose selectors see the JSON names of T, a struct.
func NewIdentity[T any](seen T, variables map[string]string) *Identity {
	return &Identity{variables, fields[T]{seen}}
}

// Matches reports whether the selector of a binding rule selects the identity; the empty selector does. The error tells
// why the selector is not one for identities of this kind.
func (id *Identity) Matches(selector string) (bool, error) { return id.fields.match(selector) }

type jwtMethod struct {
	base
	v *jwt.Validator
}

type jwtFields struct {
	Value map[string]string   `json:"value"`
	List  map[string][]string `json:"list"`
}

func (m *jwtMethod) Login(ctx context.Context, bearer string) (*Identity, error) {
	return m.run(ctx, func() (*Identity, error) {
		vars, err := m.v.Login(ctx, bearer)
		if err != nil {
			return nil, err
		}
		return jwtIdentity(vars), nil
	})
}

func (m *jwtMethod) Blank() *Identity { return jwtIdentity(m.v.Blank()) }

func jwtIdentity(v *jwt.Variables) *Identity {
	out := map[string]string{}
	for name, value := range v.Values {
		out["value."+name] = value
	}
	return NewIdentity(jwtFields{v.Values, v.Lists}, out)
}

type kubernetesMethod struct {
	base
	v *kubernetes.Validator
}

type kubernetesFields struct {
	ServiceAccount struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
		UID       string `json:"uid"`
	} `json:"serviceaccount"`
}

func (m *kubernetesMethod) Login(ctx context.Context, bearer string) (*Identity, error) {
	return m.run(ctx, func() (*Identity, error) {
		a, err := m.v.Login(ctx, bearer)
		if err != nil {
			return nil, err
		}
		return kubernetesIdentity(a), nil
	})
}

func (m *kubernetesMethod) Blank() *Identity { return kubernetesIdentity(&kubernetes.Account{}) }

func kubernetesIdentity(a *kubernetes.Account) *Identity {
	var f kubernetesFields
	f.ServiceAccount.Namespace, f.ServiceAccount.Name, f.ServiceAccount.UID = a.Namespace, a.Name, a.UID
	return NewIdentity(f, map[string]string{
		"serviceaccount.namespace": a.Namespace, "serviceaccount.name": a.Name, "serviceaccount.uid": a.UID,
	})
}

type awsMethod struct {
	base
	v    *awsiam.Validator
	conf awsiam.Config
}

type awsFields struct {
	EntityName string `json:"entity_name"`
	EntityID   string `json:"entity_id"`
	AccountID  string `json:"account_id"`
}

type awsDetailFields struct {
	awsFields
	EntityPath string            `json:"entity_path"`
	EntityTags map[string]string `json:"entity_tags"`
}

func (m *awsMethod) Login(ctx context.Context, bearer string) (*Identity, error) {
	return m.run(ctx, func() (*Identity, error) {
		p, err := m.v.Login(ctx, bearer)
		if err != nil {
			return nil, err
		}
		return m.identity(p), nil
	})
}

func (m *awsMethod) Blank() *Identity { return m.identity(&awsiam.Principal{}) }

func (m *awsMethod) identity(p *awsiam.Principal) *Identity {
	f := awsFields{p.Name, p.ID, p.Account}
	out := map[string]string{"entity_name": p.Name, "entity_id": p.ID, "account_id": p.Account}
	if !m.conf.EnableIAMEntityDetails {
		return NewIdentity(f, out)
	}
	out["entity_path"] = p.Path
	tags := map[string]string{}
	for _, tag := range m.conf.IAMEntityTags {
		tags[tag] = p.Tags[tag]
		out["entity_tags."+tag] = p.Tags[tag]
	}
	return NewIdentity(awsDetailFields{f, p.Path, tags}, out)
}
