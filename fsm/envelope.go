package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"eboot"
)

// kind is the type byte of a command.
type kind byte

// The types of commands. A number is never given to another command, not even
// after its command is gone. Retired: none yet.
const (
	kindInit         kind = 1
	kindAllowSlaves  kind = 2
	kindDenySlaves   kind = 3
	kindAddBundle    kind = 4
	kindRemoveBundle kind = 5
	kindSetChannel   kind = 6
	kindHoldBundle   kind = 7
	kindSetDrained   kind = 8
	kindRemoveServer kind = 9
	kindRaiseVersion kind = 10
	kindConfigure    kind = 11

	kindStartRollout   kind = 12
	kindObserveRollout kind = 13
	kindSteerRollout   kind = 14
	kindProtectBundle  kind = 15
	kindUndoChannel    kind = 16

	kindSignBundle  kind = 20
	kindCreateToken kind = 21
	kindRevokeToken kind = 22
	kindNote        kind = 23
)

// kinds is what there is to know of each type.
var kinds = [...]struct {
	name string
	// minimum is the cluster version from which on a command of this type may be
	// proposed: the first that every program knows which knows the type. What was added
	// to a type later is in MinimumVersion.
	minimum int
	read    func(Header, []byte) (Command, error) // nil: there is no such type
}{
	kindInit:         {"init", firstVersion, read[Init]},
	kindAllowSlaves:  {"allow slaves", firstVersion, read[AllowSlaves]},
	kindDenySlaves:   {"deny slaves", firstVersion, read[DenySlaves]},
	kindAddBundle:    {"add bundle", firstVersion, read[AddBundle]},
	kindRemoveBundle: {"remove bundle", firstVersion, read[RemoveBundle]},
	kindSetChannel:   {"set channel", firstVersion, read[SetChannel]},
	kindHoldBundle:   {"hold bundle", firstVersion, read[HoldBundle]},
	kindSetDrained:   {"set drained", firstVersion, read[SetDrained]},
	kindRemoveServer: {"remove server", firstVersion, read[RemoveServer]},
	kindRaiseVersion: {"raise version", firstVersion, read[RaiseVersion]},
	kindConfigure:    {"configure channel", optionsVersion, read[ConfigureChannel]},

	kindStartRollout:   {"start rollout", rolloutVersion, read[StartRollout]},
	kindObserveRollout: {"observe rollout", rolloutVersion, read[ObserveRollout]},
	kindSteerRollout:   {"steer rollout", rolloutVersion, read[SteerRollout]},
	kindProtectBundle:  {"protect bundle", rolloutVersion, read[ProtectBundle]},
	kindUndoChannel:    {"undo channel", rolloutVersion, read[UndoChannel]},

	kindSignBundle: {"sign bundle", securityVersion, read[SignBundle]},

	kindCreateToken: {"create token", operatorsVersion, read[CreateToken]},
	kindRevokeToken: {"revoke token", operatorsVersion, read[RevokeToken]},
	kindNote:        {"note", operatorsVersion, read[Note]},
}

// own reports whether only servers propose it, of their own accord. Such a command may
// change the state and leave no event, so nobody may be its actor.
func (k kind) own() bool { return k == kindInit || k == kindHoldBundle || k == kindObserveRollout }

func (k kind) known() bool { return int(k) < len(kinds) && kinds[k].read != nil }

func (k kind) String() string {
	if !k.known() {
		return fmt.Sprintf("type %d", byte(k))
	}
	return kinds[k].name
}

// MinimumVersion returns the cluster version that a command needs. Proposed to a
// cluster whose State.Version is lower, it would halt the servers that do not know it.
func MinimumVersion(c Command) int {
	if !c.header().By.IsZero() {
		return max(operatorsVersion, ofContent(c))
	}
	return ofContent(c)
}

// ofContent is MinimumVersion but for the header.
func ofContent(c Command) int {
	later := false
	switch c := c.(type) {
	case ConfigureChannel:
		later = c.Options.Live != ""
	case AddBundle:
		if len(c.Bundle.Signatures) > 0 {
			return securityVersion
		}
		later = c.Bundle.Protected // Encode leaves it out; an entry from outside may have it
	case RevokeToken:
		if c.Name != "" {
			return coverageVersion
		}
	}
	if later {
		return rolloutVersion
	}
	return kinds[c.kind()].minimum
}

// commandVersion is the version byte that this server writes and reads, of every type.
const commandVersion = 1

// MaxCommandSize bounds an encoded command in bytes. A larger log entry would
// hold up the heartbeats of Raft (raft.SuggestedMaxDataSize).
const MaxCommandSize = 512 << 10

// body is the JSON part of the envelope.
type body struct {
	RequestID        string          `json:"request_id"`
	At               int64           `json:"at_ms"`
	ExpectGeneration *uint64         `json:"expect_generation,omitempty"`
	By               asker           `json:"by,omitzero"`
	Change           json.RawMessage `json:"change"`
}

// asker is Header.By in the envelope.
type asker eboot.Actor

// UnmarshalJSON refuses an actor that is there and is nobody: a program that knows no
// actors would halt at it, and MinimumVersion would not see it.
func (a *asker) UnmarshalJSON(text []byte) error {
	var by eboot.Actor
	if err := unmarshal(text, &by); err != nil {
		return err
	}
	if by.IsZero() {
		return errors.New("who asked is nobody")
	}
	*a = asker(by)
	return nil
}

// HaltError says that a log entry cannot be read by this server. Apply panics
// with it: the entry must not be skipped. The way on is a version of eboot that knows it.
type HaltError struct {
	Index   uint64 // of the log entry
	Type    byte
	Version byte
	Reason  string
}

func (e *HaltError) Error() string {
	return fmt.Sprintf("log entry %d (type %d, version %d): %s; this version of eboot cannot go on applying the log: install the version that the other servers run",
		e.Index, e.Type, e.Version, e.Reason)
}

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c Init) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c AllowSlaves) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c DenySlaves) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c AddBundle) Encode() ([]byte, error) { return encode(c.withoutTime()) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c RemoveBundle) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c SetChannel) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c HoldBundle) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c SetDrained) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c RemoveServer) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c ConfigureChannel) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c StartRollout) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c ObserveRollout) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c SteerRollout) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c ProtectBundle) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c UndoChannel) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c SignBundle) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c CreateToken) Encode() ([]byte, error) { return encode(c.withoutHeader()) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c RevokeToken) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, or ErrTooLarge above MaxCommandSize.
func (c Note) Encode() ([]byte, error) { return encode(c) }

// Encode returns the log entry; ErrInvalid, also for a version above Version: a
// program cannot know what such a version needs, and it is never lowered again.
func (c RaiseVersion) Encode() ([]byte, error) {
	if c.Version > Version {
		return nil, fmt.Errorf("cluster version %d: this program knows %d at most: %w", c.Version, Version, eboot.ErrInvalid)
	}
	return encode(c)
}

func encode(c Command) ([]byte, error) {
	if err := check(c); err != nil {
		return nil, err
	}
	h := c.header()
	change, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w: %w", c.kind(), err, eboot.ErrInvalid)
	}
	text, err := json.Marshal(body{RequestID: h.RequestID, At: h.At, ExpectGeneration: h.ExpectGeneration, By: asker(h.By), Change: change})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w: %w", c.kind(), err, eboot.ErrInvalid)
	}
	if size := 2 + len(text); size > MaxCommandSize {
		return nil, fmt.Errorf("%s: %d bytes in one change, at most %d; split it into several: %w", c.kind(), size, MaxCommandSize, eboot.ErrTooLarge)
	}
	return append([]byte{byte(c.kind()), commandVersion}, text...), nil
}

// fingerprint tells one change from another under the same request id. It
// leaves out the header: a repeated request has another time, and may come another way.
type fingerprint [12]byte

func fingerprintOf(k kind, change []byte) fingerprint {
	h := sha256.New()
	h.Write([]byte{byte(k), commandVersion})
	h.Write(change)
	return fingerprint(h.Sum(nil))
}

// CheckEntry reads a log entry that comes from outside. ErrInvalid: Apply would panic
// on it; ErrTooLarge: it is longer than MaxCommandSize.
func CheckEntry(entry []byte) (Command, error) {
	if len(entry) > MaxCommandSize {
		return nil, fmt.Errorf("log entry: %d bytes, at most %d: %w", len(entry), MaxCommandSize, eboot.ErrTooLarge)
	}
	c, _, halt := decode(entry)
	if halt != nil {
		return nil, fmt.Errorf("log entry: %s: %w", halt.Reason, eboot.ErrInvalid)
	}
	return c, nil
}

// decode reads a log entry. Its error is a *HaltError without the index.
func decode(entry []byte) (Command, fingerprint, *HaltError) {
	if len(entry) < 2 {
		return nil, fingerprint{}, &HaltError{Reason: "is shorter than its envelope"}
	}
	k, version := kind(entry[0]), entry[1]
	halt := func(reason string) (Command, fingerprint, *HaltError) {
		return nil, fingerprint{}, &HaltError{Type: byte(k), Version: version, Reason: reason}
	}
	if !k.known() {
		return halt("its type is unknown")
	}
	if version != commandVersion {
		return halt("its version is unknown")
	}
	var b body
	if err := unmarshal(entry[2:], &b); err != nil {
		return halt("its body cannot be read: " + err.Error())
	}
	c, err := kinds[k].read(Header{RequestID: b.RequestID, At: b.At, ExpectGeneration: b.ExpectGeneration, By: eboot.Actor(b.By)}, b.Change)
	if err != nil {
		return halt("its change cannot be read: " + err.Error())
	}
	if raise, ok := c.(RaiseVersion); ok && raise.Version > Version && raise.check() == nil {
		return halt(fmt.Sprintf("it raises the cluster to version %d and this program knows %d: what follows may mean something else", raise.Version, Version))
	}
	return c, fingerprintOf(k, b.Change), nil
}

// read decodes the JSON of one change into its type.
func read[C Command, P interface {
	*C
	set(Header)
}](h Header, change []byte) (Command, error) {
	var c C
	P(&c).set(h)
	err := unmarshal(change, &c)
	return c, err
}

// unmarshal reads exactly one JSON value and refuses unknown fields: a field that
// this server does not know may change what the command means.
func unmarshal(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}
