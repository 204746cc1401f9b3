package main

import (
	"errors"
	"os"
	"testing"

	"eboot"
	"eboot/config"
)

// The default address may be anybody's of this machine: no token goes there that nobody sent there.
func TestTokenWantsAnAddress(t *testing.T) {
	if _, err := os.Stat(config.DefaultSocket); err == nil {
		t.Skip("a server runs on this machine")
	}
	token := eboot.FormatToken([8]byte{1}, [32]byte{2})
	for name, c := range map[string]struct {
		address, token string
		want           error
	}{
		"token alone":    {"", token, eboot.ErrInvalid},
		"neither":        {"", "", nil},
		"said":           {"http://127.0.0.1:4380", token, nil},
		"a list of none": {" , ", token, eboot.ErrInvalid},
	} {
		env := map[string]string{"EBOOT_ADDRESS": c.address, "EBOOT_TOKEN": c.token}
		cmd := &command{getenv: func(name string) string { return env[name] }}
		client, err := cmd.client()
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if client != nil {
			client.Close()
		}
	}
}
