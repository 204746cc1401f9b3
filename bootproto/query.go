package bootproto

import (
	"encoding/binary"
	"net/netip"
)

// The two messages of discovery (kernel, inet_boot.hrl).
const (
	queryPrefix = "EBOOTQ"
	replyPrefix = "EBOOTR"

	maxVersion = 32 // characters of an ERTS version
	maxQuery   = len(queryPrefix) + maxVersion
	leastReply = len(replyPrefix) + 1 + 2
	maxReply   = leastReply + maxVersion
)

// parseQuery returns the ERTS version of a request: "EBOOTQ13.1.5". ok is false
// for anything else. The result points into the datagram.
func parseQuery(datagram []byte) (version []byte, ok bool) {
	if len(datagram) <= len(queryPrefix) || len(datagram) > maxQuery || string(datagram[:len(queryPrefix)]) != queryPrefix {
		return nil, false
	}
	version = datagram[len(queryPrefix):]
	if !isVersion(version) {
		return nil, false
	}
	return version, true
}

// isVersion reports whether an ERTS version may be written so.
func isVersion(version []byte) bool {
	for _, c := range version {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case c == '.', c == '-', c == '_', c == '+', c == '~':
		default:
			return false
		}
	}
	return len(version) > 0 && len(version) <= maxVersion
}

// appendQuery writes the request of a slave.
func appendQuery(dst []byte, version string) []byte {
	return append(append(dst, queryPrefix...), version...)
}

// appendReply writes the reply: prefix, priority, TCP port, version. It is three
// bytes longer than the request.
func appendReply(dst []byte, priority byte, port uint16, version string) []byte {
	dst = append(append(dst, replyPrefix...), priority)
	return append(binary.BigEndian.AppendUint16(dst, port), version...)
}

// parseReply reads an answer as a stock slave does: nine bytes count, and what follows is
// taken for nothing at all. A version is told when it is one.
func parseReply(datagram []byte) (r Reply, ok bool) {
	if len(datagram) < leastReply || string(datagram[:len(replyPrefix)]) != replyPrefix {
		return Reply{}, false
	}
	r.Priority = datagram[len(replyPrefix)]
	r.Port = binary.BigEndian.Uint16(datagram[len(replyPrefix)+1:])
	if version := datagram[leastReply:]; isVersion(version) {
		r.ERTS = string(version)
	}
	return r, true
}

// answerable says whether a reply may be sent to the source of a request. A
// source that stands for many hosts would turn one datagram into many, and port
// 0 is nobody.
func answerable(source netip.AddrPort) bool {
	a := source.Addr()
	return source.Port() != 0 && a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
