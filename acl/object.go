package acl

import "time"

// A Link names a policy or a role. What is stored is the ID; the name is looked up when it is shown, so that a new one
// shows through.
type Link struct {
	ID   string
	Name string
}

// A ServiceIdentity stands for the rights that a service and its sidecar need (spec/acl.md section 8).
type ServiceIdentity struct {
	ServiceName string
	Datacenters []string `json:",omitempty"` // empty means all
}

// A NodeIdentity stands for the rights that an agent needs, in one datacenter.
type NodeIdentity struct {
	NodeName   string
	Datacenter string
}

// A TemplatedPolicy is a use of one of the built-in templates.
type TemplatedPolicy struct {
	TemplateName      string
	TemplateID        string             `json:",omitempty"`
	TemplateVariables *TemplateVariables `json:",omitempty"`
	Datacenters       []string           `json:",omitempty"` // empty means all
}

// TemplateVariables are what a template is filled in with.
type TemplateVariables struct {
	Name string `json:"name,omitempty"`
}

// A Token is a credential with what it may do (spec/acl.md section 5).
type Token struct {
	AccessorID        string // its public name, a UUID
	SecretID          string // the credential, a UUID
	Description       string
	Policies          []Link            `json:",omitempty"`
	Roles             []Link            `json:",omitempty"`
	ServiceIdentities []ServiceIdentity `json:",omitempty"`
	NodeIdentities    []NodeIdentity    `json:",omitempty"`
	TemplatedPolicies []TemplatedPolicy `json:",omitempty"`
	Local             bool              // good in its own datacenter alone
	AuthMethod        string            `json:",omitempty"` // that it was made by
	ExpirationTime    *time.Time        `json:",omitempty"` // nil for never
	CreateTime        time.Time
	Hash              []byte
	CreateIndex       uint64
	ModifyIndex       uint64
}

// A Policy is a named set of rules (spec/acl.md section 6).
type Policy struct {
	ID          string
	Name        string
	Description string
	Rules       string   // as written
	Datacenters []string `json:",omitempty"` // empty means all
	Hash        []byte
	CreateIndex uint64
	ModifyIndex uint64
}

// A Role is a named set of policies and identities (spec/acl.md section 7).
type Role struct {
	ID                string
	Name              string
	Description       string
	Policies          []Link            `json:",omitempty"`
	ServiceIdentities []ServiceIdentity `json:",omitempty"`
	NodeIdentities    []NodeIdentity    `json:",omitempty"`
	TemplatedPolicies []TemplatedPolicy `json:",omitempty"`
	Hash              []byte
	CreateIndex       uint64
	ModifyIndex       uint64
}

// Types of auth methods.
const (
	MethodJWT        = "jwt"
	MethodKubernetes = "kubernetes"
	MethodAWSIAM     = "aws-iam"
)

// An AuthMethod says how an outside proof of identity is checked (spec/acl.md section 9).
type AuthMethod struct {
	Name          string
	Type          string // MethodJWT, MethodKubernetes or MethodAWSIAM
	DisplayName   string `json:",omitempty"`
	Description   string
	MaxTokenTTL   time.Duration  `json:",omitempty"` // 0 means that its tokens do not expire; else at least a minute
	TokenLocality string         `json:",omitempty"` // "local" (also when empty) or "global"
	Config        map[string]any `json:",omitempty"`
	CreateIndex   uint64
	ModifyIndex   uint64
}

// What a binding rule gives.
const (
	BindService         = "service"
	BindNode            = "node"
	BindRole            = "role"
	BindPolicy          = "policy"
	BindTemplatedPolicy = "templated-policy"
)

// A BindingRule says what a login by an auth method is given (spec/acl.md section 10).
type BindingRule struct {
	ID          string
	Description string
	AuthMethod  string
	Selector    string // in the filter language; empty fits every login
	BindType    string
	BindName    string             // may have ${variables}
	BindVars    *TemplateVariables `json:",omitempty"` // only with BindTemplatedPolicy
	CreateIndex uint64
	ModifyIndex uint64
}
