package entry

// A TerminatingGateway lets the mesh call services outside of it (spec/connect.md section 8.8).
type TerminatingGateway struct {
	Header
	Services []LinkedService // null when there are none
}

// A LinkedService is a service a terminating gateway stands for; the name may be the wildcard.
type LinkedService struct {
	Name                   string
	CAFile                 string `json:",omitempty"`
	CertFile               string `json:",omitempty"`
	KeyFile                string `json:",omitempty"`
	SNI                    string `json:",omitempty"`
	DisableAutoHostRewrite bool   `json:",omitempty"`
}
