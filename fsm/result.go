package fsm

import (
	"encoding/hex"
	"encoding/json"
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

// maxEncodedResult bounds what DecodeResult reads, in bytes: an error text of which
// every byte is escaped, and the rest.
const maxEncodedResult = 8 << 10

// encodedResult is a Result on its way from the leader to the server that was asked.
// Unlike a command it may gain fields: the change is made, whoever understands all of
// its answer.
type encodedResult struct {
	Index      uint64 `json:"index"`
	Generation uint64 `json:"generation"`
	Changed    bool   `json:"changed,omitempty"`
	Replayed   bool   `json:"replayed,omitempty"`
	Code       code   `json:"code,omitempty"`
	Text       string `json:"text,omitempty"`
}

// Encode returns the result as DecodeResult reads it.
func (r *Result) Encode() []byte {
	e := encodedResult{Index: r.Index, Generation: r.Generation, Changed: r.Changed, Replayed: r.Replayed}
	if r.Err != nil {
		refused := newRefusal(r.Err)
		e.Code, e.Text = refused.code, refused.text
	}
	text, err := json.Marshal(e)
	if err != nil {
		panic(err) // numbers and texts always can be
	}
	return text
}

// DecodeResult reads what Encode wrote on another server. Err wraps the sentinel it
// did there; one that is not known here is ErrInvalid. An answer that cannot be read
// leaves it open what became of the command: ErrUnknownOutcome.
func DecodeResult(text []byte) (*Result, error) {
	if len(text) > maxEncodedResult {
		return nil, fmt.Errorf("read answer: %d bytes, at most %d: %w", len(text), maxEncodedResult, eboot.ErrUnknownOutcome)
	}
	var e encodedResult
	if err := json.Unmarshal(text, &e); err != nil {
		return nil, fmt.Errorf("read answer: %w: %w", err, eboot.ErrUnknownOutcome)
	}
	if e.Index == 0 || e.Code == "" && e.Text != "" || e.Code != "" && e.Changed {
		return nil, fmt.Errorf("read answer: is none of a command: %w", eboot.ErrUnknownOutcome)
	}
	r := &Result{Index: e.Index, Generation: e.Generation, Changed: e.Changed, Replayed: e.Replayed}
	if e.Code != "" {
		r.Err = &refusal{code: e.Code, text: bounded(e.Text)}
	}
	return r, nil
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
	text := bounded(err.Error())
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return &refusal{code: s.code, text: text}
		}
	}
	return &refusal{code: "invalid", text: text}
}

// bounded cuts a text, and leaves one that it has cut as it is.
func bounded(text string) string {
	if len(text) <= maxErrorText {
		return text
	}
	return strings.ToValidUTF8(text[:maxErrorText-len("…")], "") + "…"
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
