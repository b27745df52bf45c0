package vps

import (
	"strings"
	"time"
)

// Language is one that messages are written in.
type Language string

const (
	English Language = "en"
	French  Language = "fr"
)

// Phrase names what a message says, in no language; it is stored.
type Phrase string

const (
	PhraseTakeAsked        Phrase = "take_asked"
	PhraseTakeDone         Phrase = "take_done"
	PhraseTakeCancelled    Phrase = "take_cancelled"
	PhraseTakeFailed       Phrase = "take_failed"
	PhraseTakeParked       Phrase = "take_parked"
	PhraseRestoreAsked     Phrase = "restore_asked"
	PhraseRestoreDone      Phrase = "restore_done"
	PhraseRestoreCancelled Phrase = "restore_cancelled"
	PhraseRestoreFailed    Phrase = "restore_failed"
	PhraseRestoreParked    Phrase = "restore_parked"
	PhraseUndoAsked        Phrase = "undo_restore_asked"
	PhraseUndoDone         Phrase = "undo_restore_done"
	PhraseUndoCancelled    Phrase = "undo_restore_cancelled"
	PhraseUndoFailed       Phrase = "undo_restore_failed"
	PhraseUndoParked       Phrase = "undo_restore_parked"
	PhraseDeleteAsked      Phrase = "delete_asked"
	PhraseDeleteDone       Phrase = "delete_done"
	PhraseDeleteCancelled  Phrase = "delete_cancelled"
	PhraseDeleteFailed     Phrase = "delete_failed"
	PhraseDeleteParked     Phrase = "delete_parked"

	// Of a kind of operation that has no phrases of its own; kind.
	PhraseOperationAsked     Phrase = "operation_asked"
	PhraseOperationDone      Phrase = "operation_done"
	PhraseOperationCancelled Phrase = "operation_cancelled"
	PhraseOperationFailed    Phrase = "operation_failed"
	PhraseOperationParked    Phrase = "operation_parked"

	PhraseOptionOrdered  Phrase = "option_ordered"
	PhraseOptionActive   Phrase = "option_active"
	PhraseOptionGrace    Phrase = "option_grace" // until
	PhraseOptionReleased Phrase = "option_released"
	PhraseUndoEnded      Phrase = "undo_ended"

	PhraseDownloadMade    Phrase = "download_made"    // disk, until, link
	PhraseDownloadRevoked Phrase = "download_revoked" // link
	PhraseDownloadsEnded  Phrase = "downloads_ended"  // count

	PhraseSnapshotBroken  Phrase = "snapshot_broken"
	PhraseSnapshotHealed  Phrase = "snapshot_healed"
	PhraseSnapshotFound   Phrase = "snapshot_found"
	PhraseSnapshotVouched Phrase = "snapshot_vouched" // who
	PhraseRedefined       Phrase = "redefined"
	PhraseMergeOutrun     Phrase = "merge_outrun"
	PhraseMergeStops      Phrase = "merge_stops" // longest
	PhraseMovedAway       Phrase = "moved_away"
	PhraseMovedHere       Phrase = "moved_here"
	PhraseFed             Phrase = "fed"
	PhraseSpaceOK         Phrase = "space_ok"       // free, total
	PhraseSpaceWarning    Phrase = "space_warning"  // free, total
	PhraseSpaceCritical   Phrase = "space_critical" // free, total
	PhraseOldDatabase     Phrase = "old_database"
	PhraseWebhookGivenUp  Phrase = "webhook_given_up"
	PhraseMailGivenUp     Phrase = "mail_given_up"
)

// PhraseOf names what is said of a kind of operation that has got a status.
func PhraseOf(k Kind, s Status) Phrase {
	how := map[Status]string{StatusPending: "_asked", StatusSucceeded: "_done", StatusCancelled: "_cancelled",
		StatusFailed: "_failed", StatusNeedsAttention: "_parked"}[s]
	if phrase := Phrase(string(k) + how); phrases[phrase] != nil {
		return phrase
	}
	return genericPhrase + Phrase(how)
}

const genericPhrase Phrase = "operation"

// Generic reports whether a phrase needs the kind of its operation as a parameter.
func (p Phrase) Generic() bool { return strings.HasPrefix(string(p), string(genericPhrase)+"_") }

// phrases are the sentences: {name} is a parameter, and what stands in [] is left
// out when its parameter is empty.
var phrases = map[Phrase]map[Language]string{
	PhraseTakeAsked: {English: "A snapshot was asked for.", French: "Un snapshot a été demandé."},
	PhraseTakeDone:  {English: "The snapshot was taken[: {result}].", French: "Le snapshot a été créé[ : {result}]."},
	PhraseTakeCancelled: {
		English: "The snapshot could not be taken: it was cancelled. Nothing was changed.",
		French:  "Le snapshot n'a pas été créé : la demande a été annulée. Rien n'a été modifié.",
	},
	PhraseTakeFailed: {English: "The snapshot could not be taken.", French: "Le snapshot n'a pas pu être créé."},
	PhraseTakeParked: {
		English: "The snapshot could not be taken yet; an operator of the host has to look at it.",
		French:  "Le snapshot n'a pas encore pu être créé ; un opérateur de l'hôte doit intervenir.",
	},

	PhraseRestoreAsked: {
		English: "A restore of the snapshot was asked for.",
		French:  "La restauration du snapshot a été demandée.",
	},
	PhraseRestoreDone: {
		English: "The VPS was put back to its snapshot[: {result}].",
		French:  "Le VPS a été remis dans l'état de son snapshot[ : {result}].",
	},
	PhraseRestoreCancelled: {
		English: "The VPS could not be put back to its snapshot: it was cancelled. Nothing was changed.",
		French:  "Le VPS n'a pas été remis dans l'état de son snapshot : la demande a été annulée. Rien n'a été modifié.",
	},
	PhraseRestoreFailed: {
		English: "The VPS could not be put back to its snapshot.",
		French:  "Le VPS n'a pas pu être remis dans l'état de son snapshot.",
	},
	PhraseRestoreParked: {
		English: "The VPS could not be put back to its snapshot yet; an operator of the host has to look at it.",
		French:  "Le VPS n'a pas encore pu être remis dans l'état de son snapshot ; un opérateur de l'hôte doit intervenir.",
	},

	PhraseUndoAsked: {
		English: "The undo of the last restore was asked for.",
		French:  "L'annulation de la dernière restauration a été demandée.",
	},
	PhraseUndoDone: {
		English: "The last restore was undone[: {result}].",
		French:  "La dernière restauration a été annulée[ : {result}].",
	},
	PhraseUndoCancelled: {
		English: "The last restore could not be undone: it was cancelled. Nothing was changed.",
		French:  "La dernière restauration n'a pas été annulée : la demande a été retirée. Rien n'a été modifié.",
	},
	PhraseUndoFailed: {
		English: "The last restore could not be undone.",
		French:  "La dernière restauration n'a pas pu être annulée.",
	},
	PhraseUndoParked: {
		English: "The last restore could not be undone yet; an operator of the host has to look at it.",
		French:  "La dernière restauration n'a pas encore pu être annulée ; un opérateur de l'hôte doit intervenir.",
	},

	PhraseDeleteAsked: {
		English: "The deletion of the snapshot was asked for.",
		French:  "La suppression du snapshot a été demandée.",
	},
	PhraseDeleteDone: {
		English: "The snapshot was deleted[: {result}].",
		French:  "Le snapshot a été supprimé[ : {result}].",
	},
	PhraseDeleteCancelled: {
		English: "The snapshot could not be deleted: it was cancelled. Nothing was changed.",
		French:  "Le snapshot n'a pas été supprimé : la demande a été annulée. Rien n'a été modifié.",
	},
	PhraseDeleteFailed: {English: "The snapshot could not be deleted.", French: "Le snapshot n'a pas pu être supprimé."},
	PhraseDeleteParked: {
		English: "The snapshot could not be deleted yet; an operator of the host has to look at it.",
		French:  "Le snapshot n'a pas encore pu être supprimé ; un opérateur de l'hôte doit intervenir.",
	},

	PhraseOperationAsked: {
		English: "An operation was asked for ({kind}).",
		French:  "Une opération a été demandée ({kind}).",
	},
	PhraseOperationDone: {
		English: "The operation is done ({kind})[: {result}].",
		French:  "L'opération est terminée ({kind})[ : {result}].",
	},
	PhraseOperationCancelled: {
		English: "The operation was cancelled ({kind}). Nothing was changed.",
		French:  "L'opération a été annulée ({kind}). Rien n'a été modifié.",
	},
	PhraseOperationFailed: {English: "The operation has failed ({kind}).", French: "L'opération a échoué ({kind})."},
	PhraseOperationParked: {
		English: "The operation could not be finished yet ({kind}); an operator of the host has to look at it.",
		French:  "L'opération n'a pas encore pu être terminée ({kind}) ; un opérateur de l'hôte doit intervenir.",
	},

	PhraseOptionOrdered: {English: "The snapshot option is ordered.", French: "L'option snapshot est commandée."},
	PhraseOptionActive:  {English: "The snapshot option is active.", French: "L'option snapshot est active."},
	PhraseOptionGrace: {
		English: "The snapshot option has ended. The snapshot is kept until {until} and can be restored until then.",
		French:  "L'option snapshot a pris fin. Le snapshot est conservé jusqu'au {until} et peut être restauré jusque-là.",
	},
	PhraseOptionReleased: {English: "The snapshot option is released.", French: "L'option snapshot est close."},
	PhraseUndoEnded: {
		English: "The last restore can no longer be undone: the time for it is over.",
		French:  "La dernière restauration ne peut plus être annulée : le délai est écoulé.",
	},

	PhraseDownloadMade: {
		English: "A link to download disk {disk} of the snapshot was made ({link}); it is valid until {until}.",
		French:  "Un lien de téléchargement du disque {disk} du snapshot a été créé ({link}) ; il est valable jusqu'au {until}.",
	},
	PhraseDownloadRevoked: {
		English: "The download link {link} was revoked.",
		French:  "Le lien de téléchargement {link} a été révoqué.",
	},
	PhraseDownloadsEnded: {
		English: "The snapshot is deleted or replaced; downloads of it that were cut off: {count}.",
		French:  "Le snapshot est supprimé ou remplacé ; téléchargements interrompus : {count}.",
	},

	PhraseSnapshotBroken: {
		English: "The snapshot is broken and cannot be restored for the time being.",
		French:  "Le snapshot est endommagé et ne peut pas être restauré pour le moment.",
	},
	PhraseSnapshotHealed: {English: "The snapshot is no longer broken.", French: "Le snapshot n'est plus endommagé."},
	PhraseSnapshotVouched: {
		English: "An operator ({who}) has vouched for the files of the snapshot, which can be used again.",
		French:  "Un opérateur ({who}) s'est porté garant des fichiers du snapshot, qui est de nouveau utilisable.",
	},
	PhraseSnapshotFound: {
		English: "The record of the snapshot was made anew from the host.",
		French:  "L'enregistrement du snapshot a été reconstitué à partir de l'hôte.",
	},
	PhraseRedefined: {
		English: "The VPS was defined anew with its disks of before the snapshot; this was put right.",
		French:  "Le VPS avait été redéfini avec ses disques d'avant le snapshot ; cela a été corrigé.",
	},
	PhraseMergeOutrun: {
		English: "Deleting the snapshot takes longer: the VPS writes as fast as its disk is merged.",
		French:  "La suppression du snapshot dure plus longtemps : le VPS écrit aussi vite que son disque est fusionné.",
	},
	PhraseMergeStops: {
		English: "Deleting the snapshot takes longer: the VPS writes as fast as its disk is merged; it may be stopped for moments of at most {longest} until the merge has caught up.",
		French:  "La suppression du snapshot dure plus longtemps : le VPS écrit aussi vite que son disque est fusionné ; il peut être suspendu par instants de {longest} au plus, jusqu'à ce que la fusion l'ait rattrapé.",
	},
	PhraseMovedAway: {
		English: "The VPS was moved to another host and has taken its snapshot along.",
		French:  "Le VPS a été déplacé vers un autre hôte et a emporté son snapshot.",
	},
	PhraseMovedHere: {
		English: "The VPS has brought its snapshot along, which is in use here now.",
		French:  "Le VPS a apporté son snapshot, qui est désormais utilisé ici.",
	},
	PhraseFed: {
		English: "The VPS had stopped because its disk could not grow; there is space again, and it runs on.",
		French:  "Le VPS s'était arrêté parce que son disque ne pouvait plus grandir ; il y a de nouveau de la place et il continue.",
	},
	PhraseSpaceOK: {
		English: "Space is ok: {free} of {total} are free where VPSes have their disks.",
		French:  "L'espace disque suffit : {free} sur {total} sont libres là où les VPS ont leurs disques.",
	},
	PhraseSpaceWarning: {
		English: "Space is warning: {free} of {total} are free where VPSes have their disks[; full in {full} at this rate].",
		French:  "L'espace disque diminue : {free} sur {total} sont libres là où les VPS ont leurs disques[ ; plein dans {full} à ce rythme].",
	},
	PhraseSpaceCritical: {
		English: "Space is critical: {free} of {total} are free where VPSes have their disks[; full in {full} at this rate].",
		French:  "L'espace disque est critique : {free} sur {total} sont libres là où les VPS ont leurs disques[ ; plein dans {full} à ce rythme].",
	},
	PhraseOldDatabase: {
		English: "The daemon's database is older than what it had recorded last.",
		French:  "La base de données du service est plus ancienne que ce qu'il avait enregistré en dernier.",
	},
	PhraseWebhookGivenUp: {
		English: "A webhook could not be told some news; trying was given up.",
		French:  "Un webhook n'a pas pu recevoir certaines informations ; les tentatives ont été abandonnées.",
	},
	PhraseMailGivenUp: {
		English: "An e-mail could not be sent; trying was given up.",
		French:  "Un e-mail n'a pas pu être envoyé ; les tentatives ont été abandonnées.",
	},
}

// results are the parts of an operation's result and of its note, which are in
// English; * stands for what varies.
var results = map[string]string{
	"the guest's file systems were frozen for * ms":                            "les systèmes de fichiers ont été figés pendant * ms",
	"the disks are as after a power cut":                                       "les disques sont comme après une coupure de courant",
	"the VPS writes as fast as its disk is merged":                             "le VPS écrit aussi vite que son disque est fusionné",
	"it may be stopped for moments of at most * until the merge has caught up": "il peut être suspendu par instants de * au plus, jusqu'à ce que la fusion l'ait rattrapé",
	"the VPS was off":     "le VPS était éteint",
	"the VPS is off":      "le VPS est éteint",
	"the VPS was started": "le VPS a été démarré",
	"the VPS was started and is paused, as before":                                "le VPS a été démarré et reste en pause, comme avant",
	"its saved memory belonged to the disks of before and was dropped":            "sa mémoire enregistrée correspondait aux anciens disques et a été abandonnée",
	"the guest answers again":                                                     "le système invité répond de nouveau",
	"the guest agent has not answered within *":                                   "l'agent invité n'a pas répondu en *",
	"not frozen, because the VPS was *":                                           "non figés, car l'état du VPS était *",
	"not frozen, because no guest agent answers":                                  "non figés, car aucun agent invité ne répond",
	"not frozen, because the guest agent still owes an answer to an earlier thaw": "non figés, car l'agent invité doit encore une réponse à un dégel précédent",
	"not frozen, because the guest agent did not do it in time":                   "non figés, car l'agent invité ne l'a pas fait à temps",
	"not frozen, because the guest agent found no file system to freeze":          "non figés, car l'agent invité n'a trouvé aucun système de fichiers à figer",
	"not frozen, because freezing is disabled in the guest agent":                 "non figés, car le gel est désactivé dans l'agent invité",
	"not frozen, because the guest agent refused":                                 "non figés, car l'agent invité a refusé",
	"not frozen, because the guest agent could not be asked":                      "non figés, car l'agent invité n'a pas pu être interrogé",
	"the last restore can no longer be undone":                                    "la dernière restauration ne peut plus être annulée",
	"downloads that were cut off: *":                                              "téléchargements interrompus : *",
	"only its record, because it was broken":                                      "seulement son enregistrement, car il était endommagé",
	"only its record, because the VPS is gone":                                    "seulement son enregistrement, car le VPS n'existe plus",
	"what is left of its files was not touched":                                   "ce qui reste de ses fichiers n'a pas été touché",
}

// In returns the message in a language; one from before there were phrases is in English.
func (m Message) In(l Language) string { return m.Phrase.say(l, m.Params, m.Text) }

// In returns the message in a language.
func (m MessageEvent) In(l Language) string { return m.Phrase.say(l, m.Params, m.Text) }

func (p Phrase) say(l Language, params map[string]string, otherwise string) string {
	text, ok := phrases[p][l]
	if !ok {
		return otherwise
	}
	said := map[string]string{}
	var replace []string
	for name, value := range params {
		switch {
		case name == "result" && l == French:
			value = frenchResult(value)
		case name == "until" && l == French:
			if at, err := time.Parse(time.RFC3339, value); err == nil {
				value = l.Time(at)
			}
		}
		said[name] = value
		replace = append(replace, "{"+name+"}", value)
	}
	return strings.NewReplacer(replace...).Replace(optional(text, said))
}

// optional decides about the part in [].
func optional(text string, params map[string]string) string {
	before, rest, ok := strings.Cut(text, "[")
	if !ok {
		return text
	}
	part, after, _ := strings.Cut(rest, "]")
	_, name, _ := strings.Cut(part, "{")
	name, _, _ = strings.Cut(name, "}")
	if params[name] == "" {
		part = ""
	}
	return before + part + after
}

// frenchResult leaves out what it has no words for.
func frenchResult(english string) string {
	var parts []string
	for part := range strings.SplitSeq(english, "; ") {
		for pattern, french := range results {
			before, after, varies := strings.Cut(pattern, "*")
			if part == pattern {
				parts = append(parts, french)
			} else if varies && len(part) > len(before)+len(after) && strings.HasPrefix(part, before) && strings.HasSuffix(part, after) {
				parts = append(parts, strings.Replace(french, "*", part[len(before):len(part)-len(after)], 1))
			}
		}
	}
	return strings.Join(parts, " ; ")
}

// Time writes a time for a human, in UTC.
func (l Language) Time(t time.Time) string {
	if l == French {
		return t.UTC().Format("02/01/2006 à 15:04 UTC")
	}
	return t.UTC().Format("2 January 2006, 15:04 UTC")
}
