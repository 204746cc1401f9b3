package eboot

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Ref names what was published: NAME@VERSION. One Ref may hold a bundle for
// each of several ERTS versions.
type Ref struct {
	Name    string
	Version string
}

// ParseRef reads NAME@VERSION.
func ParseRef(s string) (Ref, error) {
	name, version, ok := strings.Cut(s, "@")
	if !ok {
		return Ref{}, fmt.Errorf("bundle %q: want NAME@VERSION: %w", abbreviate(s), ErrInvalid)
	}
	r := Ref{Name: name, Version: version}
	return r, r.Check()
}

// Check reports whether both parts are names (CheckName).
func (r Ref) Check() error {
	if err := CheckName("bundle name", r.Name); err != nil {
		return err
	}
	return CheckName("bundle version", r.Version)
}

// String returns NAME@VERSION.
func (r Ref) String() string { return r.Name + "@" + r.Version }

// IsZero reports whether r names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// MarshalText writes NAME@VERSION; the zero Ref is the empty text.
func (r Ref) MarshalText() ([]byte, error) {
	if r.IsZero() {
		return nil, nil
	}
	return []byte(r.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (r *Ref) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*r = Ref{}
		return nil
	}
	v, err := ParseRef(string(text))
	if err != nil {
		return err
	}
	*r = v
	return nil
}

// CheckName reports whether s may name a bundle, a version, a channel or a
// label: 1 to 64 of the characters A-Z a-z 0-9 . _ + ~ - , beginning with a letter
// or digit. noun says in the error what the name was for.
func CheckName(noun, s string) error {
	if s == "" {
		return fmt.Errorf("%s: is empty: %w", noun, ErrInvalid)
	}
	if len(s) > 64 {
		return fmt.Errorf("%s %q: longer than 64 characters: %w", noun, abbreviate(s), ErrInvalid)
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || strings.IndexByte("._+~-", c) < 0) {
			return fmt.Errorf("%s %q: use letters, digits and . _ + ~ -, beginning with a letter or digit: %w", noun, s, ErrInvalid)
		}
	}
	return nil
}

// CheckERTS reports whether s looks like an ERTS version as the emulator gives
// it in discovery ("13.1.5", "15.0-rc1"): 1 to 32 characters, beginning with a digit.
func CheckERTS(s string) error {
	if s == "" || len(s) > 32 || s[0] < '0' || s[0] > '9' {
		return fmt.Errorf("ERTS version %q: want a version such as 13.1.5: %w", abbreviate(s), ErrInvalid)
	}
	return CheckName("ERTS version", s)
}

// Bundle is what the replicated state knows of one immutable tree: small, and
// independent of the number of its files. Its identity is Manifest.
type Bundle struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	ERTS    string `json:"erts"` // the version slaves ask for in discovery

	Manifest Digest `json:"manifest"` // the manifest blob
	Times    Digest `json:"times"`    // the modification times blob, from the first publish

	BootScript string `json:"boot_script"`          // path in the tree that <root>/bin/start.boot answers
	SysConfig  string `json:"sys_config,omitempty"` // path that <root>/sys.config answers; empty: "[]."

	Files int   `json:"files"` // regular files in the tree
	Bytes int64 `json:"bytes"` // sum of their sizes

	PublishedAt time.Time `json:"published_at"`
	Protected   bool      `json:"protected,omitempty"` // it is neither removed nor collected
	Holders     []string  `json:"holders"`             // ids of the servers known to hold every blob

	Signatures []Signature `json:"signatures,omitempty"` // by key id, as it is written
}

// Ref returns NAME@VERSION of the bundle.
func (b Bundle) Ref() Ref { return Ref{Name: b.Name, Version: b.Version} }

// Check reports whether b may enter the replicated state.
func (b Bundle) Check() error {
	if err := b.Ref().Check(); err != nil {
		return err
	}
	if err := CheckERTS(b.ERTS); err != nil {
		return err
	}
	if b.Manifest.IsZero() || b.Times.IsZero() {
		return fmt.Errorf("bundle %s: has no manifest: %w", b.Ref(), ErrInvalid)
	}
	if err := CheckTreePath(b.BootScript); err != nil {
		return fmt.Errorf("bundle %s: boot script: %w", b.Ref(), err)
	}
	if b.SysConfig != "" {
		if err := CheckTreePath(b.SysConfig); err != nil {
			return fmt.Errorf("bundle %s: sys.config: %w", b.Ref(), err)
		}
	}
	if err := CheckSignatures(b.Signatures); err != nil {
		return fmt.Errorf("bundle %s: %w", b.Ref(), err)
	}
	return nil
}

// Channel points to one bundle per ERTS version.
type Channel struct {
	Name    string         `json:"name"`
	Bundles map[string]Ref `json:"bundles"` // by ERTS version
	Options ChannelOptions `json:"options,omitzero"`
	// History holds the latest ChannelHistoryLength moves, oldest first.
	History []ChannelMove `json:"history,omitempty"`
}

// ChannelHistoryLength bounds Channel.History.
const ChannelHistoryLength = 32

// ChannelMove is one change of what a channel points to for one ERTS version.
type ChannelMove struct {
	Generation uint64    `json:"generation"`
	At         time.Time `json:"at"`
	ERTS       string    `json:"erts"`
	From       Ref       `json:"from"` // zero: nothing before
	To         Ref       `json:"to"`   // zero: unset
}

// What the options of a channel may be; the first of each pair is the default.
const (
	LoaderEboot = "eboot" // boot scripts bring eboot's loader
	LoaderStock = "stock" // boot scripts are served as they were published
	ControlOff  = "off"   // a slave lets go of its connection when it does not use it
	ControlOn   = "on"    // a slave keeps its connection, so that it can be told something
	LiveOff     = "off"   // a boot sees one bundle from its first byte to its last
	LiveOn      = "on"    // every request is answered from the newest bundle; implies LoaderStock
)

// ChannelOptions say how the slaves of a channel boot. The empty text is the default of
// each, and what the replicated state holds for it.
type ChannelOptions struct {
	Loader  string `json:"loader,omitempty"`  // LoaderEboot or LoaderStock
	Control string `json:"control,omitempty"` // ControlOff or ControlOn
	Live    string `json:"live,omitempty"`    // LiveOff or LiveOn
}

// Check reports whether each option is empty or one of its words.
func (o ChannelOptions) Check() error {
	switch o.Loader {
	case "", LoaderEboot, LoaderStock:
	default:
		return fmt.Errorf("loader %q: want %s or %s: %w", abbreviate(o.Loader), LoaderEboot, LoaderStock, ErrInvalid)
	}
	switch o.Control {
	case "", ControlOff, ControlOn:
	default:
		return fmt.Errorf("control %q: want %s or %s: %w", abbreviate(o.Control), ControlOff, ControlOn, ErrInvalid)
	}
	switch o.Live {
	case "", LiveOff, LiveOn:
	default:
		return fmt.Errorf("live %q: want %s or %s: %w", abbreviate(o.Live), LiveOff, LiveOn, ErrInvalid)
	}
	return nil
}

// With returns o with what changes names; an empty option of changes stays as it is in
// o. A default that is named becomes the empty text.
func (o ChannelOptions) With(changes ChannelOptions) ChannelOptions {
	choose := func(now, change, byDefault string) string {
		switch change {
		case "":
			return now
		case byDefault:
			return ""
		}
		return change
	}
	return ChannelOptions{
		Loader:  choose(o.Loader, changes.Loader, LoaderEboot),
		Control: choose(o.Control, changes.Control, ControlOff),
		Live:    choose(o.Live, changes.Live, LiveOff),
	}
}

// Words returns o with each default named.
func (o ChannelOptions) Words() ChannelOptions {
	return ChannelOptions{Loader: cmp.Or(o.Loader, LoaderEboot), Control: cmp.Or(o.Control, ControlOff), Live: cmp.Or(o.Live, LiveOff)}
}
