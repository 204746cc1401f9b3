package fsm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"eboot"
)

// rememberedRequests is how many answers are kept.
const rememberedRequests = 4096

// maxErrorText bounds what an error text takes of the state, in bytes.
const maxErrorText = 512

// Result answers one command.
type Result struct {
	Index      uint64 // of the log entry that took effect; of the first one when Replayed
	Generation uint64 // after the command
	Changed    bool   // false: it was so already, or Err
	Replayed   bool   // the request id was known: nothing was done, this is the answer of then
	// Err is why the command was refused, wrapping eboot.ErrInvalid, ErrTooLarge,
	// ErrNotFound or ErrConflict; the state is then as it was.
	Err error
}

// answer is a Result as the state remembers it.
type answer struct {
	Request     string      `json:"request"`
	Fingerprint fingerprint `json:"fingerprint"`
	Index       uint64      `json:"index"`
	Generation  uint64      `json:"generation"`
	Changed     bool        `json:"changed,omitempty"`
	Code        code        `json:"code,omitempty"`
	Text        string      `json:"text,omitempty"`
}

func (a *answer) result() *Result {
	r := &Result{Index: a.Index, Generation: a.Generation, Changed: a.Changed}
	if a.Code != "" {
		r.Err = &refusal{code: a.Code, text: a.Text}
	}
	return r
}

// code names a sentinel error in the replicated state. Codes are never renamed.
type code string

var sentinels = []struct {
	code code
	err  error
}{
	{"invalid", eboot.ErrInvalid},
	{"too_large", eboot.ErrTooLarge},
	{"not_found", eboot.ErrNotFound},
	{"conflict", eboot.ErrConflict},
}

// refusal is a business error that survives being stored.
type refusal struct {
	code code
	text string
}

func newRefusal(err error) *refusal {
	text := err.Error()
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return &refusal{code: s.code, text: text}
		}
	}
	return &refusal{code: "invalid", text: text}
}

func (r *refusal) Error() string { return r.text }

func (r *refusal) Unwrap() error {
	for _, s := range sentinels {
		if r.code == s.code {
			return s.err
		}
	}
	return eboot.ErrInvalid
}

// MarshalText writes hexadecimal digits.
func (f fingerprint) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, f[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (f *fingerprint) UnmarshalText(text []byte) error {
	if len(text) != 2*len(f) {
		return fmt.Errorf("fingerprint of %d digits: %w", len(text), eboot.ErrInvalid)
	}
	_, err := hex.Decode(f[:], text)
	return err
}
