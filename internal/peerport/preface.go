package peerport

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"eboot"
)

// Protocols of the peer port. The number rises when a protocol changes so that the
// old one cannot be understood; then a server listens to both for a while.
const (
	Raft = "eboot-raft/1" // hashicorp/raft's network transport
	Blob = "eboot-blob/1" // HTTP: blobs that the receiver lacks
	RPC  = "eboot-rpc/1"  // HTTP: calls between servers
)

// Limits of the two lines that begin a connection, newline included.
const (
	maxPreface = 1024
	maxAnswer  = 1024
)

const accepted = "ok\n"

// preface is what the one who dials says first.
type preface struct {
	protocol string
	cluster  string // name of the cluster it belongs to
	from     string // its id; "": it has none
	to       string // id of the server it means to reach; "": whoever is there
}

func (p preface) encode() []byte {
	return fmt.Appendf(nil, "%s cluster=%s from=%s to=%s\n", p.protocol, url.QueryEscape(p.cluster), url.QueryEscape(p.from), url.QueryEscape(p.to))
}

// decodePreface reads a preface without its newline. An error is a *refusal of the
// kind eboot.ErrInvalid.
func decodePreface(line string) (preface, error) {
	var p preface
	words := strings.Split(line, " ")
	p.protocol = words[0]
	if !isProtocol(p.protocol) {
		return preface{}, refuse(eboot.ErrInvalid, "this port expects a protocol of eboot first")
	}
	seen := map[string]bool{}
	for _, word := range words[1:] {
		key, escaped, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return preface{}, refuse(eboot.ErrInvalid, "the preface has a word that is not key=value")
		}
		if seen[key] {
			return preface{}, refuse(eboot.ErrInvalid, "the preface has a key twice")
		}
		seen[key] = true
		value, err := url.QueryUnescape(escaped)
		if err != nil {
			return preface{}, refuse(eboot.ErrInvalid, "the preface has a value that is not escaped")
		}
		switch key {
		case "cluster":
			p.cluster = value
		case "from":
			p.from = value
		case "to":
			p.to = value
		}
	}
	return p, nil
}

// isProtocol reports whether s has the form of a protocol's name, "eboot-WORD/N".
func isProtocol(s string) bool {
	name, number, ok := strings.Cut(s, "/")
	word, prefixed := strings.CutPrefix(name, "eboot-")
	return ok && prefixed && word != "" && number != "" && len(s) <= 32 &&
		strings.Trim(word, "abcdefghijklmnopqrstuvwxyz-") == "" && strings.Trim(number, "0123456789") == ""
}

// readPreface reads up to the newline; an error is a *refusal or the connection's. A byte behind it is an error: the other side
// did not wait for the answer, and what it sent would be lost to the protocol.
func readPreface(r io.Reader) (preface, error) {
	line, err := readLine(r, maxPreface)
	if err != nil {
		return preface{}, err
	}
	return decodePreface(line)
}

func readLine(r io.Reader, limit int) (string, error) {
	buf := make([]byte, 0, 128)
	for {
		if len(buf) == cap(buf) {
			if cap(buf) >= limit {
				return "", refuse(eboot.ErrInvalid, "the preface is too long").andMore()
			}
			buf = append(make([]byte, 0, min(2*cap(buf), limit)), buf...)
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		unseen := len(buf)
		buf = buf[:len(buf)+n]
		if unseen == 0 && n > 0 && buf[0] == tlsHandshake {
			return "", refuse(eboot.ErrInvalid, "it speaks TLS, and this server has no certificates (tls.ca, tls.cert, tls.key)").andMore()
		}
		if end := bytes.IndexByte(buf[unseen:], '\n'); end >= 0 {
			if unseen+end+1 != len(buf) {
				return "", refuse(eboot.ErrInvalid, "there is more behind the preface, which has no answer yet").andMore()
			}
			return string(buf[:len(buf)-1]), nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
	}
}

// answers names on the wire why a connection is refused. The first one stands for any
// word that is not in the table.
var answers = []struct {
	word  string
	error error
}{
	{"denied", eboot.ErrDenied},
	{"conflict", eboot.ErrConflict},
	{"unavailable", eboot.ErrUnavailable},
	{"invalid", eboot.ErrInvalid},
}

// refusal is the reason why a connection is refused: one of the errors of the table
// above, and a sentence for the other side.
type refusal struct {
	kind   error
	text   string
	unread bool // the other side has sent more than was read
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, format string, args ...any) *refusal {
	return &refusal{kind: kind, text: fmt.Sprintf(format, args...)}
}

func (r *refusal) andMore() *refusal {
	r.unread = true
	return r
}

// word is how the wire calls the kind of a refusal.
func (r *refusal) word() string {
	for _, a := range answers {
		if errors.Is(r.kind, a.error) {
			return a.word
		}
	}
	return answers[0].word
}

func (r *refusal) encode() []byte {
	text := strings.ToValidUTF8(r.text, "?")
	text = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, text)
	line := r.word() + " " + text
	if len(line) > maxAnswer-1 {
		line = strings.ToValidUTF8(line[:maxAnswer-1], "")
	}
	return append([]byte(line), '\n')
}

// decodeAnswer reads a line that is not "ok".
func decodeAnswer(line string) *refusal {
	word, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	for _, a := range answers {
		if a.word == word {
			return refuse(a.error, "%s", printable(text))
		}
	}
	return refuse(answers[0].error, "it answered %q", line)
}

// printable returns s, quoted when it is not plain text: it came from elsewhere.
func printable(s string) string {
	for _, c := range s {
		if c < ' ' || c == 0x7f || c == '\ufffd' {
			return fmt.Sprintf("%q", s)
		}
	}
	return s
}

// readAnswer returns nil when the connection was accepted. It takes not a byte more
// than the answer. A *refusal is the other side's; other errors are the connection's.
func readAnswer(r io.Reader) error {
	head := make([]byte, len(accepted))
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	if string(head) == accepted {
		return nil
	}
	rest, err := io.ReadAll(io.LimitReader(r, maxAnswer)) // nothing else comes after a refusal
	if line := string(head) + string(rest); err == nil || strings.HasSuffix(line, "\n") {
		return decodeAnswer(line)
	}
	return err
}
