package fsm

import (
	"fmt"
	"strings"

	"eboot"
)

// maxNote bounds Note.Text in bytes.
const maxNote = 256

// Note leaves an event of what somebody had a server do that changes nothing in the
// replicated state: a transfer of leadership, the saving of a snapshot. By is to say
// who. Text is of at most 256 printable ASCII characters; Server, if not empty, is the server
// that it is about.
type Note struct {
	Header `json:"-"`
	Kind   eboot.EventKind `json:"kind"`
	Text   string          `json:"text"`
	Server string          `json:"server,omitempty"`
}

func (Note) kind() kind { return kindNote }

func (c Note) check() error {
	switch c.Kind {
	case eboot.EventLeaderTransferred, eboot.EventSnapshotSaved:
	default:
		return fmt.Errorf("note: of the kind %.64q: %w", c.Kind, eboot.ErrInvalid)
	}
	if c.By.IsZero() {
		return fmt.Errorf("note %s: nobody asked for it: %w", c.Kind, eboot.ErrInvalid)
	}
	if c.Text == "" || len(c.Text) > maxNote || strings.ContainsFunc(c.Text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("note %s: want 1 to %d printable ASCII characters: %w", c.Kind, maxNote, eboot.ErrInvalid)
	}
	if c.Server == "" {
		return nil
	}
	return checkServer(c.Server)
}

func (c Note) apply(t *transition) error {
	t.changed = true
	t.tell(eboot.Event{Kind: c.Kind, Text: c.Text, Server: c.Server})
	return nil
}
