package eboot

import (
	"fmt"
	"strings"
	"time"
)

// Role is what an operator may do. Each role may do what those before it may.
type Role string

// Roles, from least to most.
const (
	RoleViewer    Role = "viewer"    // sees everything but secrets, changes nothing
	RolePublisher Role = "publisher" // publishes bundles and signs them: what could boot
	RoleOperator  Role = "operator"  // whitelist, channels, rollouts, bundles, draining: who boots what
	RoleAdmin     Role = "admin"     // servers, tokens, the state as a whole
)

// Roles returns all roles, from least to most.
func Roles() []Role { return []Role{RoleViewer, RolePublisher, RoleOperator, RoleAdmin} }

// ParseRole reads a role; ErrInvalid for what is none.
func ParseRole(s string) (Role, error) {
	if r := Role(s); r.rank() > 0 {
		return r, nil
	}
	return "", fmt.Errorf("role %q: want viewer, publisher, operator or admin: %w", abbreviate(s), ErrInvalid)
}

// rank is the place of a role, from 1; 0: it is none.
func (r Role) rank() int {
	for i, known := range Roles() {
		if r == known {
			return i + 1
		}
	}
	return 0
}

// Includes reports whether r may do what other may. What is no role may do nothing.
func (r Role) Includes(other Role) bool { return other.rank() > 0 && r.rank() >= other.rank() }

// Actor is who asked for something, as the server that was asked knows it. The zero Actor
// is a server that does something by itself.
type Actor struct {
	// Name is that of a token or of a certificate, or "uid N" of a process on the server's machine.
	Name string `json:"name"`
	Via  Via    `json:"via"`
	// From is the address it came from; empty: the server's own machine, through the socket.
	From string `json:"from,omitempty"`
}

// Via is how an actor was recognised.
type Via string

// Ways to be recognised.
const (
	ViaToken       Via = "token"
	ViaCertificate Via = "certificate"
	ViaSocket      Via = "socket"   // the Unix socket: its file says who may open it
	ViaInsecure    Via = "insecure" // api.insecure: nobody was recognised
)

// maxActorText bounds each text of an Actor.
const maxActorText = 128

// IsZero reports whether it is nobody: a server itself.
func (a Actor) IsZero() bool { return a == Actor{} }

// Check reports whether a can stand in the replicated state; the error wraps ErrInvalid.
func (a Actor) Check() error {
	if a.IsZero() {
		return nil
	}
	switch a.Via {
	case ViaToken, ViaCertificate, ViaSocket, ViaInsecure:
	default:
		return fmt.Errorf("actor: unknown way %q: %w", abbreviate(string(a.Via)), ErrInvalid)
	}
	for _, text := range []string{a.Name, a.From} {
		if len(text) > maxActorText || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			return fmt.Errorf("actor %q: want at most %d printable ASCII characters: %w", abbreviate(text), maxActorText, ErrInvalid)
		}
	}
	return nil
}

// String is the actor for people: "ci (token) from 10.1.2.3".
func (a Actor) String() string {
	switch {
	case a.IsZero():
		return ""
	case a.From == "":
		return fmt.Sprintf("%s (%s)", a.Name, a.Via)
	}
	return fmt.Sprintf("%s (%s) from %s", a.Name, a.Via, a.From)
}

// MaxTokens bounds the tokens of a cluster, expired ones included.
const MaxTokens = 1024

// Token lets whoever knows its secret use the admin API. The secret is made by the client
// that creates the token and is nowhere in the cluster: the digest of the whole text is.
type Token struct {
	ID        string    `json:"id"`   // 16 hexadecimal digits, part of the text
	Name      string    `json:"name"` // unique, for people and audits
	Role      Role      `json:"role"`
	Digest    Digest    `json:"digest"`              // of the text: see ParseToken
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
	CreatedAt time.Time `json:"created_at,omitzero"`
	CreatedBy Actor     `json:"created_by,omitzero"`
}

// Check reports whether t is whole; the error wraps ErrInvalid. Times are not looked at.
func (t Token) Check() error {
	if err := CheckName("token", t.Name); err != nil {
		return err
	}
	if err := CheckTokenID(t.ID); err != nil {
		return fmt.Errorf("token %s: %w", t.Name, err)
	}
	if _, err := ParseRole(string(t.Role)); err != nil {
		return fmt.Errorf("token %s: %w", t.Name, err)
	}
	if t.Digest.IsZero() {
		return fmt.Errorf("token %s: no digest: %w", t.Name, ErrInvalid)
	}
	return t.CreatedBy.Check()
}

// CheckTokenID reports whether id can be that of a token; the error wraps ErrInvalid.
func CheckTokenID(id string) error {
	if !lowerHex(id, tokenIDSize) {
		return fmt.Errorf("token id %q: want %d hexadecimal digits: %w", abbreviate(id), tokenIDSize, ErrInvalid)
	}
	return nil
}

// Expired reports whether t is no longer good at a time.
func (t Token) Expired(now time.Time) bool { return !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) }

// The text of a token: "eboot_" ID "_" SECRET, which secret scanners can recognise.
const (
	tokenPrefix     = "eboot_"
	tokenIDSize     = 16
	tokenSecretSize = 64 // hexadecimal digits: 256 bits
)

// FormatToken returns the text of a token with an ID of 8 bytes and a secret of 32, which
// must be random.
func FormatToken(id [8]byte, secret [32]byte) string {
	return fmt.Sprintf("%s%x_%x", tokenPrefix, id, secret)
}

// ParseToken returns the ID in the text of a token and the digest of the text. The error
// wraps ErrInvalid and does not show the text.
func ParseToken(text string) (id string, digest Digest, err error) {
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	id, secret, cut := strings.Cut(rest, "_")
	if !ok || !cut || !lowerHex(id, tokenIDSize) || !lowerHex(secret, tokenSecretSize) {
		return "", Digest{}, fmt.Errorf("that is no token of eboot, which is eboot_, %d digits, _ and %d digits: %w", tokenIDSize, tokenSecretSize, ErrInvalid)
	}
	return id, DigestOf([]byte(text)), nil
}

func lowerHex(s string, size int) bool {
	return len(s) == size && strings.Trim(s, "0123456789abcdef") == ""
}
