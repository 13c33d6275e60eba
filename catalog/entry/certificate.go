package entry

// An InlineCertificate is a certificate for gateways, kept in the entry (spec/connect.md section 8.15).
type InlineCertificate struct {
	Header
	Certificate string // PEM chain
	PrivateKey  string // PEM
}

// A FileSystemCertificate is a certificate for gateways, kept in files of the gateway's machine.
type FileSystemCertificate struct {
	Header
	Certificate string // path
	PrivateKey  string // path
}
