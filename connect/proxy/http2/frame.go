package http2

import "fmt"

// preface is what a client sends first.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	frameHeader = 9
	maxFrame    = 16 << 10 // the payload that we accept, and the largest that we send
	maxWindow   = 1<<31 - 1
	maxStreamID = 1<<31 - 1
)

// The types of frames.
const (
	typeData = iota
	typeHeaders
	typePriority
	typeReset
	typeSettings
	typePush
	typePing
	typeGoAway
	typeWindow
	typeContinuation
)

// The flags of frames.
const (
	flagAck        = 0x1
	flagEnd        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// The settings.
const (
	settingTable = iota + 1
	settingPush
	settingStreams
	settingWindow
	settingFrame
	settingHeaderList
	_
	settingConnect
)

// A Code is the number that tells the peer why a stream or connection ended: RFC 9113, section 7.
type Code uint32

// The codes.
const (
	NoError Code = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
	"REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error %d", uint32(c))
}

// An Error ended a connection.
type Error struct {
	Code   Code
	Detail string // for logs, such as "http2.violation.of.messaging.rule"
	Remote bool   // the peer said so with GOAWAY
}

func (e *Error) Error() string {
	if e.Remote {
		return fmt.Sprintf("http2: the peer closed the connection: %v", e.Code)
	}
	return fmt.Sprintf("http2: %v: %s", e.Code, e.Detail)
}

func appendFrame(b []byte, length int, typ, flags byte, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), typ, flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendUint32(b []byte, n uint32) []byte {
	return append(b, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

func appendSetting(b []byte, id uint16, n uint32) []byte {
	return appendUint32(append(b, byte(id>>8), byte(id)), n)
}

func uint31(b []byte) uint32 {
	return uint32(b[0]&0x7f)<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func uint32of(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
