package entry

// A ServiceSplitter spreads the requests for a service over services and subsets by weight (spec/connect.md section
// 8.5).
type ServiceSplitter struct {
	Header
	Splits []ServiceSplit // weights sum up to 100
}

// A ServiceSplit is one share.
type ServiceSplit struct {
	Weight          float64     // percent, kept to two decimals
	Service         string      `json:",omitempty"` // empty means the splitter's own
	ServiceSubset   string      `json:",omitempty"`
	Namespace       string      `json:",omitempty"`
	Partition       string      `json:",omitempty"`
	RequestHeaders  *HeaderEdit `json:",omitempty"`
	ResponseHeaders *HeaderEdit `json:",omitempty"`
}
