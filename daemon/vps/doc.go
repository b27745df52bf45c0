// Package vps holds the nouns of the product: VPS, Option, Snapshot,
// Operation, Message, Host and Error. It imports the standard library only, so
// that every other package can speak in these terms.
//
// Every string constant here leaves the process (REST, CLI, database, domain
// metadata) and is therefore stable.
package vps
